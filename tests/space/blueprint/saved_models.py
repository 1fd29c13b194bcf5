"""Tiny models of many families, saved as people save them, and hand-made safetensors files."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import torch
import transformers as t

from tunemath.space import Blueprint

_DECODER = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
_ENCODER = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 24,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_SEQ2SEQ = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip
_T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_IMAGE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
_GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

_CAUSAL, _MASKED = "AutoModelForCausalLM", "AutoModelForMaskedLM"
_SEQUENCES, _TOKENS = "AutoModelForSequenceClassification", "AutoModelForTokenClassification"
_SEQ2SEQ_LM, _IMAGES = "AutoModelForSeq2SeqLM", "AutoModelForImageClassification"
_VISION_LM = "AutoModelForImageTextToText"

# Each model: its family, its auto class, its configuration.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", _CAUSAL, _DECODER),
    "llama-tied": ("llama", _CAUSAL, _DECODER | {"tie_word_embeddings": True}),
    "llama-biases": ("llama", _CAUSAL, _DECODER | {"attention_bias": True, "mlp_bias": True}),
    "llama-base": ("llama", "AutoModel", _DECODER),
    "llama-classes": ("llama", _SEQUENCES, _DECODER | {"num_labels": 3}),
    "qwen2": ("qwen2", _CAUSAL, _DECODER),
    "qwen3-head-dim": ("qwen3", _CAUSAL, _DECODER | {"head_dim": 16}),
    "gemma2": ("gemma2", _CAUSAL, _DECODER | {"head_dim": 16}),
    "gemma3": ("gemma3_text", _CAUSAL, _DECODER | {"head_dim": 16}),
    "phi3": ("phi3", _CAUSAL, _DECODER),
    "olmo2": ("olmo2", _CAUSAL, _DECODER),
    "starcoder2": ("starcoder2", _CAUSAL, _DECODER),
    "gpt2": ("gpt2", _CAUSAL, _GPT),
    "gpt2-classes": ("gpt2", _SEQUENCES, _GPT | {"num_labels": 3, "pad_token_id": 0}),
    "gptj": ("gptj", _CAUSAL, _GPT | {"rotary_dim": 4}),
    "gpt_neox": ("gpt_neox", _CAUSAL, _ENCODER),
    "gpt_bigcode": ("gpt_bigcode", _CAUSAL, _GPT),
    "opt": (
        "opt",
        _CAUSAL,
        _ENCODER | {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 0},
    ),
    "bloom": ("bloom", _CAUSAL, {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("falcon", _CAUSAL, _ENCODER),
    "mixtral": ("mixtral", _CAUSAL, _DECODER | _LOCAL),
    "phimoe": ("phimoe", _CAUSAL, _DECODER | _LOCAL),
    "qwen2_moe": (
        "qwen2_moe",
        _CAUSAL,
        _DECODER | _EXPERTS | {"shared_expert_intermediate_size": 40},
    ),
    "qwen3_moe": ("qwen3_moe", _CAUSAL, _DECODER | _EXPERTS),
    "olmoe": ("olmoe", _CAUSAL, _DECODER | _EXPERTS),
    "deepseek_v2": ("deepseek_v2", _CAUSAL, _DECODER | _LATENT),
    "deepseek_v3": ("deepseek_v3", _CAUSAL, _DECODER | _LATENT),
    "gpt_oss": ("gpt_oss", _CAUSAL, _DECODER | _LOCAL | {"head_dim": 8}),
    "granitemoe": ("granitemoe", _CAUSAL, _DECODER | _LOCAL),
    "llama4": (
        "llama4_text",
        _CAUSAL,
        _DECODER
        | _LOCAL
        | {"intermediate_size_mlp": 40, "head_dim": 8, "interleave_moe_layer_step": 1},
    ),
    "jamba": (
        "jamba",
        _CAUSAL,
        _DECODER
        | {"num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 4, "mamba_dt_rank": 4}
        | {"attn_layer_period": 2, "attn_layer_offset": 1}
        | {"expert_layer_period": 2, "expert_layer_offset": 1},
    ),
    "t5": ("t5", _SEQ2SEQ_LM, _T5),
    "t5-untied": (
        "t5",
        _SEQ2SEQ_LM,
        _T5 | {"tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
    ),
    "bart": ("bart", _SEQ2SEQ_LM, _SEQ2SEQ | {"max_position_embeddings": 64}),
    "whisper": (
        "whisper",
        "AutoModelForSpeechSeq2Seq",
        _SEQ2SEQ | {"num_mel_bins": 8, "max_source_positions": 32, "max_target_positions": 32},
    ),
    "bert": ("bert", _MASKED, _ENCODER),
    "bert-classes": ("bert", _SEQUENCES, _ENCODER | {"num_labels": 3}),
    "roberta": ("roberta", _MASKED, _ENCODER | {"max_position_embeddings": 66}),
    "distilbert": (
        "distilbert",
        _MASKED,
        {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    ),
    "albert": ("albert", _MASKED, _ENCODER | {"embedding_size": 16}),
    "electra": ("electra", _MASKED, _ENCODER | {"embedding_size": 16}),
    "deberta-v2": (
        "deberta-v2",
        _TOKENS,
        _ENCODER
        | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "conv_kernel_size": 3},
    ),
    "modernbert": (
        "modernbert",
        _MASKED,
        _ENCODER
        | {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
        | {"bos_token_id": 1, "eos_token_id": 2},
    ),
    "vit": ("vit", _IMAGES, _IMAGE | {"num_labels": 3}),
    "dinov2": ("dinov2", _IMAGES, _IMAGE | {"num_labels": 3}),
    "wav2vec2": (
        "wav2vec2",
        "AutoModelForCTC",
        {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "conv_dim": (16, 16), "conv_kernel": (4, 4)}
        | {"conv_stride": (2, 2), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8}
        | {"num_conv_pos_embedding_groups": 4},
    ),
    "mamba": (
        "mamba",
        _CAUSAL,
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    ),
    "clip": (
        "clip",
        "AutoModel",
        {"text_config": _ENCODER, "vision_config": _IMAGE, "projection_dim": 16},
    ),
    "llava": (
        "llava",
        _VISION_LM,
        {
            "text_config": {"model_type": "llama", **_DECODER},
            "vision_config": {"model_type": "clip_vision_model", **_IMAGE},
        },
    ),
    "gemma3-vision": (
        "gemma3",
        _VISION_LM,
        {
            "text_config": _DECODER | {"head_dim": 16},
            "vision_config": _IMAGE,
            "mm_tokens_per_image": 4,
        },
    ),
    "qwen2_vl": (
        "qwen2_vl",
        _VISION_LM,
        {
            "text_config": _DECODER
            | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
            "vision_config": {"embed_dim": 32, "depth": 2, "num_heads": 4, "hidden_size": 32}
            | {"mlp_ratio": 2, "patch_size": 4},
        },
    ),
}


@functools.cache
def model(name: str) -> t.PreTrainedModel:
    """Return a tiny model; don't change it."""
    family, auto, values = MODELS[name]
    return getattr(t, auto).from_config(t.AutoConfig.for_model(family, **values))


def save(name: str, folder: Path, *, config: bool = True, **options: Any) -> Path:
    """Save a tiny model as transformers does, with its configuration or without."""
    model(name).save_pretrained(folder, **options)
    if not config:
        (folder / "config.json").unlink()
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Change fields of a config.json; DROP takes one away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "DROP"}))


def modules(blueprint: Blueprint) -> set[Any]:
    """Return what is the same whatever order modules and their parameters come in."""
    return {(m.name, m.kind, frozenset(m.tensors), m.weight) for m in blueprint.modules}


def ties(blueprint: Blueprint) -> set[Any]:
    """Return which parameters are one, whichever of them stands for both."""
    return {frozenset(pair) for pair in blueprint.tied.items()}


_SIZES = {"U8": 1, "I8": 1, "F8_E4M3": 1, "I16": 2, "F16": 2, "BF16": 2, "I32": 4, "F32": 4,
          "I64": 8}  # fmt: skip


Tensor = tuple[str, tuple[int, ...] | bytes] | bytes


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file by the format's description: (dtype, shape), or data, bytes being U8."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        dtype, content = ("U8", tensor) if isinstance(tensor, bytes) else tensor
        size = _SIZES[dtype]
        if isinstance(content, bytes):
            shape, raw = (len(content) // size,), content
        else:
            shape, raw = content, bytes(size * math.prod(content))
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def tensors_of(name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return a tiny model's own tensors as float16, to be packed by hand."""
    live = model(name)
    tied = set(live.all_tied_weights_keys) if hasattr(live, "all_tied_weights_keys") else set()
    return {
        key: ("F16", tuple(value.shape))
        for key, value in live.named_parameters(remove_duplicate=True)
        if key not in tied and isinstance(value, torch.Tensor)
    }
