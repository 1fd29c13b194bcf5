"""Published models by their shapes: files of full length that hold no data."""

from __future__ import annotations

import json
import math
import sys

import pytest

from tunemath.space import read_blueprint

_BYTES = {"BF16": 2, "F8_E4M3": 1, "F32": 4}


def _write(folder, tensors, shards):
    names, places = list(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        header, end = {}, 0
        for name in names[shard::shards]:
            dtype, shape = tensors[name]
            offsets = [end, end + _BYTES[dtype] * math.prod(shape)]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
            places[name], end = file, offsets[1]
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text)
            opened.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def _linear(name, d_out, d_in, fp8=False):
    if not fp8:
        return {f"{name}.weight": ("BF16", [d_out, d_in])}
    scales = [-(-d_out // 128), -(-d_in // 128)]
    return {
        f"{name}.weight": ("F8_E4M3", [d_out, d_in]),
        f"{name}.weight_scale_inv": ("F32", scales),
    }


def _llama_405b():
    """Llama 3.1 405B: arXiv 2407.21783, table 3; the vocabulary is 128,256 with special tokens."""
    layers, hidden, width, kv, vocab = 126, 16384, 53248, 8 * 128, 128256
    tensors = _linear("model.embed_tokens", vocab, hidden) | _linear("lm_head", vocab, hidden)
    tensors["model.norm.weight"] = ("BF16", [hidden])
    for layer in range(layers):
        name = f"model.layers.{layer}"
        for part, out in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            tensors |= _linear(f"{name}.self_attn.{part}_proj", out, hidden)
        tensors |= _linear(f"{name}.mlp.gate_proj", width, hidden)
        tensors |= _linear(f"{name}.mlp.up_proj", width, hidden)
        tensors |= _linear(f"{name}.mlp.down_proj", hidden, width)
        for norm in ("input", "post_attention"):
            tensors[f"{name}.{norm}_layernorm.weight"] = ("BF16", [hidden])
    matrices = 2 * hidden * hidden + 2 * kv * hidden + 3 * width * hidden
    return tensors, 2 * vocab * hidden + layers * (matrices + 2 * hidden) + hidden


def _deepseek_v3():
    """DeepSeek-V3, arXiv 2412.19437, section 4.2: 671B, and a layer for prediction."""
    hidden, vocab, experts = 7168, 129280, 256
    tensors = _linear("model.embed_tokens", vocab, hidden) | _linear("lm_head", vocab, hidden)
    tensors["model.norm.weight"] = ("BF16", [hidden])
    latent = {
        "q_a_proj": (1536, hidden),
        "q_b_proj": (128 * 192, 1536),
        "kv_a_proj_with_mqa": (576, hidden),
        "kv_b_proj": (128 * 256, 512),
        "o_proj": (hidden, 128 * 128),
    }

    def feed_forward(name, width):
        return (
            _linear(f"{name}.gate_proj", width, hidden, fp8=True)
            | _linear(f"{name}.up_proj", width, hidden, fp8=True)
            | _linear(f"{name}.down_proj", hidden, width, fp8=True)
        )

    for layer in range(62):
        name = f"model.layers.{layer}"
        for part, shape in latent.items():
            tensors |= _linear(f"{name}.self_attn.{part}", *shape, fp8=True)
        norms = {"self_attn.q_a": 1536, "self_attn.kv_a": 512, "input": hidden}
        for norm, width in {**norms, "post_attention": hidden}.items():
            tensors[f"{name}.{norm}_layernorm.weight"] = ("BF16", [width])
        if layer < 3:
            tensors |= feed_forward(f"{name}.mlp", 18432)
            continue
        tensors |= _linear(f"{name}.mlp.gate", experts, hidden)
        tensors[f"{name}.mlp.gate.e_score_correction_bias"] = ("F32", [experts])
        for expert in (*(f"experts.{n}" for n in range(experts)), "shared_experts"):
            tensors |= feed_forward(f"{name}.mlp.{expert}", 2048)
    tensors |= _linear("model.layers.61.eh_proj", hidden, 2 * hidden)
    attention = sum(d_out * d_in for d_out, d_in in latent.values()) + 1536 + 512 + 2 * hidden
    dense, expert = 3 * 18432 * hidden, 3 * 2048 * hidden
    mixture = (experts + 1) * expert + experts * hidden
    return tensors, 2 * vocab * hidden + hidden + 61 * attention + 3 * dense + 58 * mixture


def _calls(act):
    """Return what a function gives, and how many calls of Python functions it took."""
    counted = 0

    def count(frame, event, argument):
        nonlocal counted
        counted += event == "call"

    sys.setprofile(count)
    try:
        return act(), counted
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize(
    ("build", "billions", "shards"),
    [(_llama_405b, 406, 191), (_deepseek_v3, 671, 163)],
    ids=["llama 405B", "deepseek v3"],
)
def test_published_counts_from_headers_in_few_steps(tmp_path, build, billions, shards):
    written, parameters = build()
    assert round(parameters / 1e9) == billions
    _write(tmp_path, written, shards)
    read, calls = _calls(lambda: read_blueprint(tmp_path))
    assert calls < 100 * len(written)  # linear in tensors, whatever the machine
    assert read.parameters == parameters
    assert read.quantisation == ("fp8" if build is _deepseek_v3 else "")
    assert read.dtype == "bfloat16"
