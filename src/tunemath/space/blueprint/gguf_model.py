"""A GGUF file's model: its configuration in transformers' words, its tensors under live names.

The words of the metadata are those of llama.cpp's gguf-py/gguf/constants.py; the names of the
tensors are those of tensor_mapping.py beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tunemath.errors import ModelError
from tunemath.space.blueprint.gguf import Gguf, GgufTensor
from tunemath.space.blueprint.quantised import Weight

__all__ = ["gguf_config", "gguf_weights"]

_PLAIN = ("F64", "F32", "F16", "BF16")


class _Family(NamedTuple):
    """How one of llama.cpp's architectures is called and laid out in transformers."""

    model_type: str
    inside: Mapping[str, str]
    """The name of each tensor within a layer."""
    outside: Mapping[str, str]
    """The name of each tensor outside the layers."""
    layers: str = "model.layers"
    words: Mapping[str, str] = {}
    """The fields of the configuration that have other names."""


_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
}
_LLAMA = _ATTENTION | {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA = _LLAMA | {"ffn_norm": "pre_feedforward_layernorm"}
_EXPERTS = _LLAMA | {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate",
    "ffn_up_exps": "mlp.experts.up",
    "ffn_down_exps": "mlp.experts.down",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_PHI3 = _LLAMA | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_STARCODER2 = _ATTENTION | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
_GPT_OSS = _EXPERTS | {"ffn_gate_inp": "mlp.router", "attn_sinks": "self_attn.sinks"}
_GPT2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GPT2_OUTSIDE = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GPT2_WORDS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}
_NEOX = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
_NEOX_OUTSIDE = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "lm_head",
}

_FAMILIES = {
    "gemma": _Family("gemma", _LLAMA, _OUTSIDE),
    "gemma2": _Family("gemma2", _GEMMA, _OUTSIDE),
    "gemma3": _Family("gemma3_text", _GEMMA, _OUTSIDE),
    "gpt-oss": _Family("gpt_oss", _GPT_OSS, _OUTSIDE, words={"num_experts": "num_local_experts"}),
    "gpt2": _Family("gpt2", _GPT2, _GPT2_OUTSIDE, "transformer.h", _GPT2_WORDS),
    "gptneox": _Family("gpt_neox", _NEOX, _NEOX_OUTSIDE, "gpt_neox.layers"),
    "granite": _Family("granite", _LLAMA, _OUTSIDE),
    "llama": _Family("llama", _LLAMA, _OUTSIDE),
    "mixtral": _Family("mixtral", _EXPERTS, _OUTSIDE, words={"num_experts": "num_local_experts"}),
    "olmo2": _Family("olmo2", _LLAMA, _OUTSIDE),
    "phi3": _Family("phi3", _PHI3, _OUTSIDE),
    "qwen2": _Family("qwen2", _LLAMA, _OUTSIDE),
    "qwen2moe": _Family("qwen2_moe", _EXPERTS, _OUTSIDE),
    "qwen3": _Family("qwen3", _LLAMA, _OUTSIDE),
    "qwen3moe": _Family("qwen3_moe", _EXPERTS, _OUTSIDE),
    "smollm3": _Family("smollm3", _LLAMA, _OUTSIDE),
    "stablelm": _Family("stablelm", _LLAMA, _OUTSIDE),
    "starcoder2": _Family("starcoder2", _STARCODER2, _OUTSIDE),
}


def gguf_config(path: Path, gguf: Gguf) -> dict[str, Any]:
    """Return the configuration that config.json would hold, as far as shapes depend on it."""
    architecture = str(gguf.metadata.get("general.architecture", ""))
    family = _family(path, gguf)
    _hold_experts(path, gguf)

    def number(key: str, default: int | None = None) -> int:
        value = gguf.metadata.get(f"{architecture}.{key}", default)
        if isinstance(value, list) and len({*value}) == 1:
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ModelError(
                f"{path} has no usable {architecture}.{key} ({value!r}); expected one whole number"
            )
        return value

    vocab, hidden = _matrix(path, gguf, "token_embd.weight")
    heads = number("attention.head_count")
    config: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "max_position_embeddings": number("context_length"),
        "intermediate_size": number("feed_forward_length"),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
    }
    config |= _from_tensors(gguf.tensors, heads)
    renamed = {family.words.get(key, key): value for key, value in config.items()}
    return {"model_type": family.model_type, **renamed}


def _family(path: Path, gguf: Gguf) -> _Family:
    architecture = str(gguf.metadata.get("general.architecture", ""))
    # llama.cpp has one architecture for Llama, Mistral and Mixtral.
    if architecture == "llama" and "blk.0.ffn_gate_inp.weight" in gguf.tensors:
        architecture = "mixtral"
    if architecture not in _FAMILIES:
        raise ModelError(
            f"{path} holds a model of the architecture {architecture!r}; known in GGUF are "
            f"{', '.join(_FAMILIES)}. Give the model's folder with safetensors instead"
        )
    return _FAMILIES[architecture]


def _hold_experts(path: Path, gguf: Gguf) -> None:
    """Refuse a mixture that lacks a layer's gate, up or down projections, or their biases."""
    there: dict[tuple[int, str], set[str]] = {}
    for name in gguf.tensors:
        if re.fullmatch(r"blk\.\d+\.ffn_(gate|up|down)\.\d+\.weight", name):
            raise ModelError(
                f"{path} holds each expert apart ({name}), as llama.cpp wrote them before April "
                "2024; convert the model again with a llama.cpp of today"
            )
        layer = re.fullmatch(r"blk\.(\d+)\.ffn_(gate_inp|(gate|up|down)_exps)\.(\w+)", name)
        if layer and layer[3]:
            there.setdefault((int(layer[1]), layer[4]), set()).add(layer[3])
        elif layer:
            there.setdefault((int(layer[1]), "weight"), set())
    for (number, key), parts in sorted(there.items()):
        lacking = next((part for part in ("gate", "up", "down") if part not in parts), None)
        if lacking:
            raise ModelError(
                f"{path}: layer {number} lacks blk.{number}.ffn_{lacking}_exps.{key}, and its "
                "feed-forward is a mixture of experts; the file is not whole, download it again"
            )


def _matrix(path: Path, gguf: Gguf, name: str) -> tuple[int, int]:
    shape = gguf.tensors[name].shape if name in gguf.tensors else ()
    if len(shape) != 2:
        raise ModelError(f"{path} has no matrix {name}; a model's GGUF holds one")
    return shape[0], shape[1]


def _from_tensors(tensors: Mapping[str, GgufTensor], heads: int) -> dict[str, Any]:
    """Return what no metadata says: widths of heads and experts, and which layers have a bias."""
    first = {
        name.removeprefix("blk.0."): tensor.shape
        for name, tensor in tensors.items()
        if name.startswith("blk.0.")
    }
    qkv_bias = "attn_q.bias" in first or "attn_qkv.bias" in first
    found: dict[str, Any] = {
        "attention_bias": qkv_bias,
        "use_qkv_bias": qkv_bias,
        "use_bias": qkv_bias,
        "mlp_bias": "ffn_up.bias" in first,
        "use_parallel_residual": "ffn_norm.weight" not in first,
    }
    if len(first.get("attn_q.weight", ())) == 2 and heads:
        found["head_dim"] = first["attn_q.weight"][0] // heads
    if len(first.get("ffn_gate_exps.weight", ())) == 3:
        found["num_experts"], width, _ = first["ffn_gate_exps.weight"]
        found["moe_intermediate_size"] = width
    if len(first.get("ffn_gate_shexp.weight", ())) == 2:
        found["shared_expert_intermediate_size"] = first["ffn_gate_shexp.weight"][0]
    return found


def gguf_weights(path: Path, gguf: Gguf) -> dict[str, Weight]:
    """Return the parameters under the names of the live model; constants are left out."""
    family = _family(path, gguf)
    found: dict[str, Weight] = {}
    for full, tensor in gguf.tensors.items():
        stem, _, key = full.rpartition(".")
        layer = re.fullmatch(r"blk\.(\d+)\.(.+)", stem)
        name = family.inside.get(layer[2]) if layer else family.outside.get(stem)
        if name is None or key not in ("weight", "bias"):
            continue
        if layer:
            name = f"{family.layers}.{layer[1]}.{name}"
        form = "" if tensor.type in _PLAIN else f"gguf-{tensor.type}"
        shape = tensor.shape
        if family.model_type == "gpt2" and key == "weight" and ".c_" in name:
            shape = shape[::-1]
        if name.endswith(".shared_expert_gate") and len(shape) == 1:
            shape = (1, *shape)
        found[_full(name, key)] = Weight(shape, tensor.type, tensor.nbytes, form)
    return _gates_and_ups_together(found)


def _full(name: str, key: str) -> str:
    """Return a parameter's full name; experts and sinks are bare parameters of their module."""
    if ".experts." in name:
        return f"{name}_proj" if key == "weight" else f"{name}_proj_bias"
    return name if name.endswith(".sinks") else f"{name}.{key}"


def _gates_and_ups_together(weights: dict[str, Weight]) -> dict[str, Weight]:
    """Lay a mixture's gate and up projections together, as transformers holds them."""
    for name in [name for name in weights if ".experts.gate_proj" in name]:
        gate = weights.pop(name)
        up = weights.pop(name.replace(".gate_proj", ".up_proj"))
        if min(len(gate.shape), len(up.shape)) < 2:
            continue
        rows = gate.shape[1] + up.shape[1]
        both = (gate.shape[0], rows, *gate.shape[2:])
        fused = name.replace(".gate_proj", ".gate_up_proj")
        weights[fused] = Weight(both, gate.dtype, gate.nbytes + up.nbytes, gate.form)
    return weights
