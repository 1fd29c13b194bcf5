"""Quantised checkpoints, packed by hand after their formats' own descriptions."""

from __future__ import annotations

import json
import struct

import pytest
from packed_weights import FORMS, fp8_blocks, mxfp4_packed, mxfp4_quark, mxfp6_packed
from saved_models import model, modules, save, tensors_of, write_safetensors

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.space import read_blueprint


def _packed(name, pack):
    """Return a model's tensors with every linear layer inside the layers packed."""
    found = {}
    for full, (dtype, shape) in tensors_of(name).items():
        if ".layers." in full and full.endswith("proj.weight"):
            found |= pack(full.removesuffix(".weight"), *shape)
        else:
            found[full] = (dtype, shape)
    return found


def _nbytes(path):
    raw = path.read_bytes()
    return len(raw) - 8 - int.from_bytes(raw[:8], "little")


@pytest.mark.parametrize("config", [True, False], ids=["config", "headers alone"])
@pytest.mark.parametrize("form", FORMS)
def test_logical_shapes_are_those_of_the_unquantised_model(tmp_path, form, config):
    pack, label = FORMS[form]
    save("qwen2", tmp_path, config=config)
    write_safetensors(tmp_path / "model.safetensors", _packed("qwen2", pack))
    live = blueprint_of(model("qwen2"))
    read = read_blueprint(tmp_path)
    assert modules(read) == modules(live)
    assert read.parameters == live.parameters
    assert read.quantisation == label
    assert read.dtype == "float16"
    assert read.stored_bytes == _nbytes(tmp_path / "model.safetensors")


@pytest.mark.parametrize("form", ["bitsandbytes-4bit", "bitsandbytes-8bit"])
def test_a_quantised_conv1d_is_a_linear_layer(tmp_path, form):
    """transformers replaces GPT-2's Conv1D by bitsandbytes' linear layers, turned round."""
    tensors = {}
    for name, (dtype, shape) in tensors_of("gpt2").items():
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            tensors |= FORMS[form][0](name.removesuffix(".weight"), *shape[::-1])
        else:
            tensors[name] = (dtype, shape)
    write_safetensors(save("gpt2", tmp_path) / "model.safetensors", tensors)
    read, live = read_blueprint(tmp_path), blueprint_of(model("gpt2"))
    assert [m.name for m in read.modules] == [m.name for m in live.modules]
    for module, original in zip(read.modules, live.modules, strict=True):
        assert (module.d_in, module.d_out, module.bias) == (
            (original.d_in, original.d_out, original.bias)
        )
        assert module.kind == ("linear" if original.kind == "conv1d" else original.kind)


@pytest.mark.parametrize(
    ("pack", "form"),
    [(mxfp4_packed, "compressed-tensors"), (mxfp6_packed, "compressed-tensors"),
     (mxfp4_quark, "mxfp4")],
)  # fmt: skip
def test_microscaling_has_a_scale_for_32_values(tmp_path, pack, form):
    write_safetensors(tmp_path / "model.safetensors", pack("layers.0.up_proj", 6, 64))
    read = read_blueprint(tmp_path)
    assert [(m.name, m.shape) for m in read.modules] == [("layers.0.up_proj", (6, 64))]
    assert read.quantisation == form


def test_experts_in_8_bits_are_laid_together(tmp_path):
    """DeepSeek-V3's layout: every expert's three matrices with their scales."""
    tensors = {}
    for n in range(3):
        for part, shape in (("gate", (6, 4)), ("up", (6, 4)), ("down", (4, 6))):
            tensors |= fp8_blocks(f"model.layers.0.mlp.experts.{n}.{part}_proj", *shape)
    write_safetensors(tmp_path / "model.safetensors", tensors)
    read = read_blueprint(tmp_path)
    assert dict(read.modules[0].tensors) == {"gate_up_proj": (3, 12, 4), "down_proj": (3, 4, 6)}
    assert read.stored_bytes == 3 * 3 * (24 + 4)


@pytest.mark.parametrize("config", [True, False], ids=["config", "headers alone"])
def test_mxfp4_experts_of_gpt_oss(tmp_path, config):
    """transformers, integrations/mxfp4.py: blocks of 32 values in 16 bytes, d_in packed."""
    live = model("gpt_oss").config
    experts, hidden, width = 4, live.hidden_size, live.intermediate_size
    rest = {n: t for n, t in tensors_of("gpt_oss").items() if not n.endswith("_proj")}
    hidden_groups = hidden // 32
    packed = {}
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.experts"
        packed |= {
            f"{name}.gate_up_proj_blocks": ("U8", (experts, 2 * width, hidden_groups, 16)),
            f"{name}.gate_up_proj_scales": ("U8", (experts, 2 * width, hidden_groups)),
        }
        # 48 is no multiple of 32: the width of these groups is 24.
        packed |= {
            f"{name}.down_proj_blocks": ("U8", (experts, hidden, 2, 12)),
            f"{name}.down_proj_scales": ("U8", (experts, hidden, 2)),
        }
    save("gpt_oss", tmp_path, config=config)
    write_safetensors(tmp_path / "model.safetensors", rest | packed)
    read = read_blueprint(tmp_path)
    assert modules(read) == modules(blueprint_of(model("gpt_oss")))
    assert read.quantisation == "mxfp4"
    assert read.stored_bytes == _nbytes(tmp_path / "model.safetensors")


def test_a_configuration_alone_names_the_quantisation(tmp_path):
    config = model("qwen2").config.to_dict()
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config["dtype"] = "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = read_blueprint(tmp_path / "config.json")
    assert read.quantisation == "bitsandbytes-4bit"
    assert read.dtype == "bfloat16"
    assert read.stored_bytes is None


def _with(form, **changes):
    tensors = FORMS[form][0]("model.layers.0.self_attn.q_proj", 32, 16)
    for ending, tensor in changes.items():
        name = next(name for name in tensors if name.endswith(ending))
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    return tensors


def _ints(*numbers):
    return "I64", struct.pack(f"<{len(numbers)}q", *numbers)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (_with("bitsandbytes-4bit", nf4=b'{"shape": [64, 32]}'), r"shape of \[64, 32\] for 256"),
        (_with("bitsandbytes-4bit", nf4=b'{"shape": [-1, 32]}'), "quant_state of shape"),
        (_with("bitsandbytes-4bit", nf4=b"{}"), "quant_state without a shape"),
        (_with("bitsandbytes-4bit", nf4=b"\xff" * 20), "quant_state without a shape"),
        (_with("bitsandbytes-4bit", nf4=bytes(70_000)), "70,000 bytes where a short description"),
        (_with("gptq", g_idx=None, qzeros=None), "without g_idx or qzeros"),
        (_with("gptq", qweight=("I32", (2, 2, 2))), r"a part of shape \[2, 2, 2\]"),
        (_with("awq", scales=("F16", (3, 7))), r"a qweight \[16, 4\] with scales \[3, 7\]"),
        (_with("pack-quantized", weight_shape=None), "without weight_shape"),
        (_with("nvfp4-pack", weight_scale=("F8_E4M3", (32, 3))), "without weight_shape"),
        (_with("nvfp4-pack", weight_scale=("U8", (2,)), weight_packed=("U8", ())), "U8.. without"),
        (_with("pack-quantized", weight_shape=("I64", (2,))), r"a stored shape of \[0, 0\]"),
        (_with("hqq", shape=("F16", (2,))), r"a shape stored as F16\[2\]"),
        (_with("hqq", shape=_ints(32, 32)), r"stored shape of \[32, 32\] beside U8\[32, 8\]"),
        (_with("hqq-3bit", shape=_ints(32, 32)), r"shape of \[32, 32\] beside I32\[2, 32\]"),
        (_with("hqq", shape=None), "a W_q without shape or nbits, which is no layout"),
        (_with("hqq-2bit", nbits=None), "a W_q without shape or nbits"),
        (_with("pack-quantized", weight_shape=_ints(32, 65)), r"\[32, 65\] beside I32\[32, 2\]"),
        (_with("pack-quantized", weight_shape=_ints(31, 16)), r"\[31, 16\] beside I32\[32, 2\]"),
        (_with("sparse-24", shape=_ints(16, 8)), r"shape of \[16, 8\] beside F16\[32, 8\]"),
        (_with("sparse-24", shape=None), r"integers U8\[32, 2\] for a weight"),
        (_with("gptq", g_idx=("I32", (17,))), r"a qweight \[2, 32\] for 17 inputs"),
        (_with("bitsandbytes-4bit", nf4=None), r"integers U8\[256, 1\] for a weight"),
        (_with("bitsandbytes-8bit", SCB=None), r"integers I8\[32, 16\] for a weight"),
    ],
)
def test_packed_weights_that_make_no_sense_are_refused(tmp_path, tensors, message):
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ModelError, match=message):
        read_blueprint(tmp_path)


# Tensors of one layer of 32 × 32 as other formats store them.
UNKNOWN = {
    # compressed-tensors, compressors/marlin_24.py: halved, permuted in tiles, then packed.
    "marlin-24": {"weight_packed": ("I32", (64, 1)), "scale_packed": ("F16", (32, 2)),
                  "meta": ("I16", (32, 4))},
    # transformers, integrations/quanto.py; eetq.py; aqlm.py; fp_quant.py.
    "quanto": {"weight._data": ("I8", (32, 32)), "weight._scale": ("F16", (32, 1))},
    "eetq": {"weight": ("I8", (32, 32)), "weight_scales": ("F16", (32,))},
    "aqlm": {"codes": ("I8", (32, 4, 1)), "codebooks": ("F16", (1, 256, 1, 8)),
             "scales": ("F16", (32, 1, 1, 1))},
    "fp_quant": {"qweight": ("U8", (32, 16)), "scales": ("U8", (32, 1))},
    # Model Optimizer's W4A16, two values a byte along d_out; Marlin; EXL2.
    "modelopt": {"weight": ("U8", (16, 32)), "weight_scale": ("F16", (32, 2))},
    "marlin": {"B": ("I32", (2, 64)), "s": ("F16", (1, 32))},
    "exl2": {"q_weight": ("I32", (4, 32)), "q_scale": ("I32", (1, 4)), "q_perm": ("I16", (32,))},
}  # fmt: skip


@pytest.mark.parametrize("config", [True, False], ids=["config", "headers alone"])
@pytest.mark.parametrize("form", UNKNOWN)
def test_layouts_that_are_not_known_are_refused_and_not_counted_as_bytes(tmp_path, form, config):
    save("qwen2", tmp_path, config=config)
    name = "model.layers.0.self_attn.q_proj"
    tensors = {n: t for n, t in tensors_of("qwen2").items() if not n.startswith(f"{name}.w")}
    packed = {f"{name}.{key}": tensor for key, tensor in UNKNOWN[form].items()}
    write_safetensors(tmp_path / "model.safetensors", tensors | packed)
    with pytest.raises(ModelError, match=rf"{name}.* no layout that is known; .*unquantised"):
        read_blueprint(tmp_path)


def test_a_declared_quantisation_whose_tensors_say_nothing_is_named(tmp_path):
    save("qwen2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "strange"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = tensors_of("qwen2")
    shape = tensors.pop("model.layers.0.self_attn.q_proj.weight")
    tensors["model.layers.0.self_attn.q_proj.values"] = shape
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ModelError, match=r"lack 1 of .* quantised as strange, and their layout"):
        read_blueprint(tmp_path)


@pytest.mark.parametrize("settings", [None, {}, [], "gptq", {"quant_method": None}])
def test_a_configuration_may_name_no_quantisation(tmp_path, settings):
    save("qwen2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    for path in (tmp_path, tmp_path / "config.json"):
        read = read_blueprint(path)
        assert (read.quantisation, read.parameters) == ("", model("qwen2").num_parameters())
