from __future__ import annotations

import json
from collections.abc import Callable
from math import prod

import peft
import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from tunemath.errors import ModelError
from tunemath.runner import blueprints
from tunemath.runner.blueprints import blueprint_from_transformers, blueprint_of
from tunemath.space import Blueprint
from tunemath.space.blueprint.saved import from_json, to_json
from tunemath.space.peft import AdapterConfig, peft_ledger

T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
MAMBA = {"model_type": "mamba", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
         "state_size": 4}  # fmt: skip
WAV2VEC2 = {
    "model_type": "wav2vec2", "vocab_size": 32, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "conv_dim": [16, 16],
    "conv_kernel": [4, 4], "conv_stride": [2, 2], "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
LLAVA = {
    "model_type": "llava",
    "text_config": {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4,
    },
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 8,
    },
}  # fmt: skip


def on_meta(config: transformers.PreTrainedConfig, auto: str) -> transformers.PreTrainedModel:
    with torch.device("meta"):
        return getattr(transformers, auto).from_config(config)


def parameters_of(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Return the names and shapes that torch gives, every name of a shared parameter included."""
    return [(n, tuple(p.shape)) for n, p in model.named_parameters(remove_duplicate=False)]


def test_an_encoder_decoders_embeddings_are_one():
    model = on_meta(transformers.T5Config(**T5), "AutoModelForSeq2SeqLM")
    blueprint = blueprint_of(model)
    assert list(blueprint.tensors()) == parameters_of(model)
    assert blueprint.tied == {
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
        "lm_head.weight": "shared.weight",
    }
    assert blueprint.parameters == model.num_parameters()
    assert (blueprint.embedding, blueprint.head) == ("shared", "lm_head")
    # 64 · 32 once; each stack has its own positions and norm.
    assert blueprint.parameters - sum(
        prod(shape) for name, shape in blueprint.tensors() if ".block." in name
    ) == 64 * 32 + 2 * 32  # fmt: skip


def test_a_module_with_two_names_is_counted_under_the_first():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 3)
            self.second = self.first

    blueprint = blueprint_of(Twice())
    assert [module.name for module in blueprint.modules] == ["first"]
    assert blueprint.parameters == 4 * 3 + 3
    assert blueprint.tied == {}


def test_a_parameter_with_two_names_is_tied_to_the_first():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    blueprint = blueprint_of(model)
    assert blueprint.tied == {"1.weight": "0.weight"}
    assert blueprint.parameters == 4 * 4 + 4 + 4


class Packed(nn.Linear):
    """A linear layer as bitsandbytes' Linear4bit: two weights a byte in one column."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out)
        data = torch.zeros(d_in * d_out // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(data, requires_grad=False)


class PackedEmbedding(nn.Embedding):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)
        data = torch.zeros(rows * width // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(data, requires_grad=False)


def test_packed_weights_have_their_logical_shape():
    blueprint = blueprint_of(nn.Sequential(Packed(8, 6), PackedEmbedding(10, 4)))
    linear, embedding = blueprint.modules
    assert (linear.kind, linear.d_in, linear.d_out, linear.bias) == ("linear", 8, 6, True)
    assert linear.tensors == (("weight", (6, 8)), ("bias", (6,)))
    assert (embedding.kind, embedding.tensors) == ("embedding", (("weight", (10, 4)),))
    assert blueprint.unlearnable == {"0.weight", "1.weight"}


def stand_in(
    kind: type, d_in: int, d_out: int, buffers: bool, **tensors: torch.Tensor
) -> nn.Module:
    """Return a linear layer whose weight is packed, with the tensors that its library gives it."""
    module = kind(d_in, d_out) if kind is nn.Linear else kind()
    if kind is nn.Linear:
        del module.weight
    module.in_features, module.out_features = d_in, d_out
    for name, tensor in tensors.items():
        if buffers:
            module.register_buffer(name, tensor)
        else:
            setattr(module, name, nn.Parameter(tensor, requires_grad=False))
    return module


# hqq/core/quantize.py, HQQLinear; compressed-tensors' compressors, which take the weight away from
# torch's Linear; awq/modules/linear/gemm.py, whose tensors are buffers.
PACKED = {
    "hqq": (nn.Module, False, {"W_q": (3, 16)}),
    "compressed-tensors": (
        nn.Linear,
        False,
        {"weight_packed": (6, 2), "weight_scale": (6, 1), "weight_shape": (2,)},
    ),
    "awq": (nn.Module, True, {"qweight": (16, 1), "qzeros": (1, 1), "scales": (1, 6)}),
}


@pytest.mark.parametrize("form", PACKED)
def test_layers_that_other_tensors_stand_for_have_their_logical_shape(form):
    kind, buffers, shapes = PACKED[form]
    tensors = {name: torch.zeros(shape, dtype=torch.int32) for name, shape in shapes.items()}
    tensors["bias"] = torch.zeros(6)
    (layer,) = blueprint_of(nn.Sequential(stand_in(kind, 16, 6, buffers, **tensors))).modules
    assert (layer.kind, layer.d_in, layer.d_out, layer.bias) == ("linear", 16, 6, True)
    assert layer.tensors == (("weight", (6, 16)), ("bias", (6,)))


def test_multihead_attention_holds_its_input_projection():
    blueprint = blueprint_of(nn.Sequential(nn.MultiheadAttention(8, 2)))
    attention, out = blueprint.modules
    assert (attention.name, attention.kind) == ("0", "attention")
    assert attention.tensors == (("in_proj_weight", (24, 8)), ("in_proj_bias", (24,)))
    assert (out.name, out.kind, out.shape) == ("0.out_proj", "linear", (8, 8))
    assert blueprint.parameters == 24 * 8 + 24 + 8 * 8 + 8


def test_weights_made_from_other_parameters_keep_their_shape():
    class Zeroed(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 0

    conv = parametrizations.weight_norm(nn.Conv1d(8, 4, 3, groups=2), dim=2)
    linear = nn.Linear(6, 5, bias=False)
    parametrize.register_parametrization(linear, "weight", Zeroed())
    model = nn.Sequential(conv, linear)
    blueprint = blueprint_of(model)
    assert list(blueprint.tensors()) == parameters_of(model)
    found = {module.name: module for module in blueprint.modules}
    assert (found["0"].kind, found["0"].shape) == ("conv", (4, 4, 3))
    assert found["0"].tensors == (("bias", (4,)),)
    assert blueprint.parameters == 4 + 3 + 4 * 4 * 3 + 6 * 5
    # The linear layer owns nothing itself; what it is made from is counted.
    assert found["1.parametrizations.weight"].tensors == (("original", (5, 6)),)


class Normed(nn.Module):
    """A linear layer and a convolution whose weights are made by weight norm."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module], bias: bool) -> None:
        super().__init__()
        self.proj = norm(nn.Linear(6, 5, bias=bias))
        self.conv = norm(nn.Conv1d(5, 4, 3, bias=bias))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_weight_normed_layers_are_there_and_are_counted_as_peft_counts_them(norm, bias):
    model = Normed(norm, bias)
    blueprint = blueprint_of(model)
    assert list(blueprint.tensors()) == parameters_of(model)
    assert blueprint.parameters == sum(p.numel() for p in model.parameters())
    proj, conv = blueprint.by_name["proj"], blueprint.by_name["conv"]
    assert (proj.kind, proj.shape, proj.d_in, proj.d_out) == ("linear", (5, 6), 6, 5)
    assert (conv.kind, conv.shape) == ("conv", (4, 5, 3))
    assert (proj.bias, conv.bias) == (bias, bias)
    ledger = peft_ledger(blueprint, AdapterConfig("LORA", r=2, target_modules=["proj", "conv"]))
    live = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["proj", "conv"]))  # type: ignore[arg-type]
    assert (ledger.trainable, ledger.total) == live.get_nb_trainable_parameters()
    assert sum(row["parameters"] for row in ledger.by_module()) == ledger.total


def test_frozen_parameters_are_told():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    model[0].bias.requires_grad_(False)
    assert blueprint_of(model).unlearnable == {"0.bias"}


def test_quantisation_is_that_of_the_configuration():
    model = on_meta(transformers.LlamaConfig(**LLAVA["text_config"]), "AutoModelForCausalLM")
    assert blueprint_of(model).quantisation == ""
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert blueprint_of(model).quantisation == "bitsandbytes-4bit"


@pytest.mark.parametrize(
    ("config", "auto"),
    [(MAMBA, "AutoModelForCausalLM"), (WAV2VEC2, "AutoModelForCTC"),
     (LLAVA, "AutoModelForImageTextToText")],
    ids=["mamba", "wav2vec2", "llava"],
)  # fmt: skip
def test_any_family_is_built_by_transformers(tmp_path, config, auto):
    values = {key: value for key, value in config.items() if key != "model_type"}
    model = on_meta(transformers.AutoConfig.for_model(config["model_type"], **values), auto)
    saved = {**config, "architectures": [type(model).__name__]}
    blueprint = blueprint_from_transformers(saved, cache=tmp_path)
    assert list(blueprint.tensors()) == parameters_of(model)
    assert blueprint.parameters == model.num_parameters()
    assert (blueprint.model_type, blueprint.architecture) == (
        config["model_type"],
        type(model).__name__,
    )


def test_a_blueprint_is_built_once_for_a_configuration_and_a_task(tmp_path, monkeypatch):
    built = []
    real = blueprints.build_from_config
    monkeypatch.setattr(
        blueprints, "build_from_config", lambda *each: built.append(each) or real(*each)
    )
    first = blueprint_from_transformers(MAMBA, cache=tmp_path)
    assert first.architecture == "MambaForCausalLM"
    assert blueprint_from_transformers(dict(reversed(MAMBA.items())), cache=tmp_path) == first
    assert len(built) == len(list(tmp_path.iterdir())) == 1
    base = blueprint_from_transformers(MAMBA, task_type="FEATURE_EXTRACTION", cache=tmp_path)
    wider = blueprint_from_transformers({**MAMBA, "hidden_size": 64}, cache=tmp_path)
    assert (base.architecture, wider.hidden) == ("MambaModel", 64)
    assert len(built) == len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("text", ["", "[]", '{"modules": 3}', "\x00"])
def test_a_damaged_cache_is_built_again(tmp_path, text):
    first = blueprint_from_transformers(MAMBA, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    assert blueprint_from_transformers(MAMBA, cache=tmp_path) == first
    assert from_json(file.read_text()) == first


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    found = blueprint_from_transformers(MAMBA, cache=tmp_path / "file")
    assert found == blueprint_from_transformers(MAMBA, cache=tmp_path / "folder")


def test_the_cache_is_tunemaths_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEMATH_CACHE", str(tmp_path))
    blueprint_from_transformers(MAMBA)
    assert len(list((tmp_path / "blueprints").glob("*.json"))) == 1


def test_weights_are_logical_and_code_from_elsewhere_is_not_run(tmp_path):
    strange = {
        **MAMBA,
        "auto_map": {"AutoModelForCausalLM": "modeling.Evil"},
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "_attn_implementation": "flash_attention_2",
    }
    found = blueprint_from_transformers(strange, cache=tmp_path)
    assert found.modules == blueprint_from_transformers(MAMBA, cache=tmp_path).modules


@pytest.mark.parametrize(
    ("config", "task", "message"),
    [
        (
            {"model_type": "nothing"},
            None,
            r"has 'nothing' as model_type, which transformers",
        ),
        ({"hidden_size": 3}, None, r"has None as model_type, which transformers"),
        ({**MAMBA, "architectures": ["Evil"]}, None, r"'Evil' as its class, .*set task_type"),
        ({**MAMBA, "architectures": ["AutoConfig"]}, None, r"'AutoConfig' as its class"),
        ({**MAMBA, "hidden_size": "x"}, None, r"cannot build MambaForCausalLM .*hidden_size"),
        ({**MAMBA, "hidden_size": -3}, None, r"cannot build MambaForCausalLM from this"),
        (MAMBA, "SEQ_CLS", r"SEQ_CLS, for which transformers has no mamba model; it has CAUSAL_LM"),
    ],
)
def test_what_cannot_be_built_says_why(tmp_path, config, task, message):
    with pytest.raises(ModelError, match=message):
        blueprint_from_transformers(config, task_type=task, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_json_gives_the_blueprint_back():
    model = on_meta(transformers.AutoConfig.for_model(**WAV2VEC2), "AutoModelForCTC")
    blueprint = blueprint_of(model)
    copy = from_json(to_json(blueprint))
    for name in (name for name in Blueprint.__dataclass_fields__ if name != "config"):
        assert getattr(copy, name) == getattr(blueprint, name), name
    assert copy.config == json.loads(json.dumps(blueprint.config, default=str))
    with pytest.raises(ModelError, match="not a saved blueprint"):
        from_json('{"modules": []}')
