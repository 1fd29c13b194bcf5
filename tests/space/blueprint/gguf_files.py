"""Tiny models written as GGUF by llama.cpp's own Python package, names and layout included."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers as t

_DECODER = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

# Each model: llama.cpp's architecture, transformers' family, the configuration.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "llama", _DECODER),
    "llama-tied": ("llama", "llama", _DECODER | {"tie_word_embeddings": True}),
    "llama-biases": ("llama", "llama", _DECODER | {"attention_bias": True, "mlp_bias": True}),
    "mixtral": ("llama", "mixtral", _DECODER | {"num_local_experts": 4}),
    "qwen2": ("qwen2", "qwen2", _DECODER),
    "qwen2_moe": (
        "qwen2moe",
        "qwen2_moe",
        _DECODER | _MOE | {"shared_expert_intermediate_size": 40},
    ),
    "qwen3-head-dim": ("qwen3", "qwen3", _DECODER | {"head_dim": 32}),
    "qwen3_moe": ("qwen3moe", "qwen3_moe", _DECODER | _MOE | {"head_dim": 32}),
    "gemma": ("gemma", "gemma", _DECODER | {"head_dim": 32}),
    "gemma2": ("gemma2", "gemma2", _DECODER | {"head_dim": 32}),
    "gemma3": ("gemma3", "gemma3_text", _DECODER | {"head_dim": 32}),
    "phi3": ("phi3", "phi3", _DECODER),
    "gpt2": (
        "gpt2",
        "gpt2",
        {"vocab_size": 64, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32},
    ),
    "gpt_neox": ("gptneox", "gpt_neox", {k: v for k, v in _DECODER.items() if "value" not in k}),
    "starcoder2": ("starcoder2", "starcoder2", _DECODER),
    "stablelm": ("stablelm", "stablelm", _DECODER),
    "stablelm-bias": ("stablelm", "stablelm", _DECODER | {"use_qkv_bias": True}),
    "olmo2": ("olmo2", "olmo2", _DECODER),
    "granite": ("granite", "granite", _DECODER),
    "smollm3": ("smollm3", "smollm3", _DECODER),
    "gpt_oss": ("gpt-oss", "gpt_oss", _DECODER | {"num_local_experts": 4, "head_dim": 16}),
}


def model(name: str) -> t.PreTrainedModel:
    _, family, values = MODELS[name]
    with torch.device("meta"):
        return t.AutoModelForCausalLM.from_config(t.AutoConfig.for_model(family, **values))


def write_gguf(name: str, path: Path, kind: str = "F32", **options: Any) -> Path:
    """Write a tiny model's file with llama.cpp's names; matrices inside the layers are ``kind``."""
    live, architecture = model(name), MODELS[name][0]
    writer = gguf.GGUFWriter(path, architecture, **options)
    config = live.config
    writer.add_name(name)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{n}".encode() for n in range(5000)])
    writer.add_token_types([1] * 5000)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", 4 * config.hidden_size))
    writer.add_head_count(config.num_attention_heads)
    if getattr(config, "num_key_value_heads", None):
        writer.add_head_count_kv(config.num_key_value_heads)
    if getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        writer.add_expert_count(4)
    for full, shape in _tensors(live, architecture):
        inside = full.startswith("blk.") and len(shape) > 1
        array = np.zeros(shape, np.float32)
        if inside and kind != "F32":
            quantised = gguf.GGMLQuantizationType[kind]
            data = gguf.quants.quantize(array, quantised)
            writer.add_tensor(full, data, raw_dtype=quantised)
        else:
            writer.add_tensor(full, array)
    writer.add_tensor("rope_freqs.weight", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(live: t.PreTrainedModel, architecture: str):
    """Yield names and shapes as llama.cpp's convert_hf_to_gguf.py lays them out."""
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, 2)
    tied = set(live.all_tied_weights_keys)
    for full, parameter in live.named_parameters():
        shape = tuple(parameter.shape)
        if full in tied:
            continue
        experts = re.fullmatch(r"(.*\.experts)\.(gate_up|down)_proj(_bias)?", full)
        if experts:
            layer, part, bias = experts.groups()
            stem = f"blk.{layer.split('.')[2]}.ffn_"
            end = "_exps.bias" if bias else "_exps.weight"
            if architecture == "gpt-oss" and not bias:
                shape = (shape[0], shape[2], shape[1])
            if part == "down":
                yield f"{stem}down{end}", shape
            else:
                half = (shape[0], shape[1] // 2, *shape[2:])
                yield f"{stem}gate{end}", half
                yield f"{stem}up{end}", half
            continue
        name = names.get_name(full, try_suffixes=(".weight", ".bias"))
        assert name, full
        if architecture == "gpt2" and full.endswith(
            (".c_attn.weight", ".c_fc.weight", ".c_proj.weight")
        ):
            shape = shape[::-1]
        if full.endswith("shared_expert_gate.weight"):
            shape = shape[1:]
        yield (name if name.endswith((".weight", ".bias")) else f"{name}.weight"), shape
