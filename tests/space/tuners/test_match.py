from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import peft
import pytest
from peft.tuners.tuners_utils import _find_minimal_target_modules
from peft.utils.other import get_pattern_key
from peft_models import FAMILIES, agree_on, base, blueprint
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.space.blueprint import Blueprint, Builder
from tunemath.space.peft import AdapterConfig, peft_change
from tunemath.space.peft.match import (
    find_targets,
    near_names,
    require_kinds,
)
from tunemath.space.peft.names import pattern_value, shortened


def targeted(model: nn.Module, **values) -> list[str]:
    """Return the names of the layers that PEFT adapts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**values))
    return sorted(live.base_model.targeted_module_names)


def found(model: Blueprint, **values) -> list[str]:
    return sorted(m.name for m in find_targets(model, AdapterConfig("LORA", **values)).modules)


ALL = {"target_modules": "all-linear"}
CASES = {
    "short": {"target_modules": ["q_proj", "up_proj"]},
    "dotted": {"target_modules": ["self_attn.q_proj", "1.mlp.up_proj", "v_proj"]},
    "full": {"target_modules": ["model.layers.1.mlp.up_proj"]},
    "both": {"target_modules": ["q_proj", "self_attn.q_proj", "model.layers.0.self_attn.q_proj"]},
    "not-a-part": {"target_modules": ["proj", "attn.q_proj", "q_proj"]},
    "expression": {"target_modules": r"model\.layers\.\d\.self_attn\.[qk]_proj"},
    "expression-of-all": {"target_modules": r".*(_proj|head)"},
    "all-linear": ALL,
    "all-linear-capitals": {"target_modules": "ALL-Linear"},
    "default": {},
    "head": {"target_modules": ["lm_head", "embed_tokens"]},
    "excluded": {**ALL, "exclude_modules": ["q_proj", "0.mlp.up_proj"]},
    "excluded-expression": {**ALL, "exclude_modules": r".*\.1\..*"},
    "saved": {**ALL, "modules_to_save": ["mlp", "self_attn.q_proj"]},
    "saved-in-part": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "layer": {"target_modules": ["q_proj"], "layers_to_transform": 1},
    "layers": {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [0]},
    "layers-of-none": {"target_modules": ["q_proj"], "layers_to_transform": []},
    "layers-beside-full": {
        "target_modules": ["model.layers.0.self_attn.q_proj", "v_proj"],
        "layers_to_transform": [1],
    },
    "pattern": {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
    "patterns": {
        "target_modules": ["q_proj"],
        "layers_to_transform": [1],
        "layers_pattern": ["h", "layers"],
    },
}


@pytest.mark.parametrize("case", CASES)
def test_targets_are_those_of_the_live_model(case):
    assert found(blueprint("llama"), **CASES[case]) == targeted(base("llama"), **CASES[case])


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("qwen3_moe", "mixtral")])
def test_all_linear_leaves_the_head_out(family):
    assert found(blueprint(family), **ALL) == targeted(base(family), **ALL)


def test_all_linear_leaves_the_classifier_to_its_task():
    values = {**ALL, "task_type": "SEQ_CLS"}
    assert "classifier" in found(blueprint("bert"), **ALL)
    assert "classifier" not in found(blueprint("bert"), **values)


class Endings(nn.Module):
    """A linear layer whose name is the ending of another layer's, and of a block's."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.proj = nn.Linear(4, 6)
        self.inner = nn.Module()
        self.inner.proj = inner


@pytest.mark.parametrize("inner", [nn.Embedding(4, 6), nn.Conv1d(4, 6, 1), nn.LayerNorm(4)])
def test_all_linear_matches_endings_too(inner):
    assert agree_on(Endings(inner), "LORA", ALL) == (not isinstance(inner, nn.LayerNorm))


@pytest.fixture(scope="module")
def deep() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=12,
            num_attention_heads=2,
        )
    )  # fmt: skip


def many(layers: int, *names: str) -> list[str]:
    return [f"model.layers.{i}.self_attn.{n}" for i in range(layers) for n in names]


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (many(12, "q_proj", "v_proj"), [0, 3]),  # cut to q_proj and v_proj: the layers count
        (many(9, "q_proj", "v_proj"), [0, 3]),  # fewer than 20 stay: full names beat layers
        (many(11, "q_proj", "v_proj"), [0, 3]),  # cut to 0.self_attn.q_proj and so on
        ([*many(12, "q_proj", "v_proj"), "up_proj", "lm_head"], [5]),
    ],
)
def test_many_names_are_cut_before_layers_are_chosen(deep, names, layers):
    values = {"target_modules": names, "layers_to_transform": layers}
    assert found(blueprint_of(deep), **values) == targeted(deep, **values)


def test_cut_names_are_those_of_peft(deep):
    model = blueprint_of(deep)
    every = {*model.by_name, *model.containers}
    for names in (many(12, "q_proj"), many(12, "q_proj", "k_proj"), many(10, "q_proj", "o_proj")):
        others = [
            n for n in every if n not in names and not n.endswith(tuple(f".{x}" for x in names))
        ]
        kept = _find_minimal_target_modules(names, others)
        expected = kept if len(names) >= 20 and len(kept) < len(names) else set(names)
        assert shortened(model, names) == expected


def test_what_was_asked_for_is_kept():
    targets = find_targets(blueprint("llama"), AdapterConfig("LORA"))
    assert targets.asked == ["q_proj", "v_proj"]
    assert targets.unmatched == ()
    given = AdapterConfig("LORA", target_modules=["q_proj", "qproj", "mlp", "layers.7.q_proj"])
    targets = find_targets(blueprint("llama"), given)
    assert targets.unmatched == ("qproj", "layers.7.q_proj")
    assert targets.containers == ("model.layers.0.mlp", "model.layers.1.mlp")


def test_containers_are_no_layers_that_own_parameters():
    model = nn.Module()
    model.attend = nn.MultiheadAttention(8, 2)
    targets = find_targets(blueprint_of(model), AdapterConfig("LORA", target_modules=["attend"]))
    assert (len(targets.modules), targets.containers) == (1, ())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_modules": ["qproj"]}, r"LORA: target_modules \['qproj'\] match no module"),
        ({"target_modules": ["mlp"]}, "match model.layers.0.mlp, a block of layers"),
        ({"target_modules": ["norm"]}, "match model.norm, whose kind is norm; expected linear"),
    ],
)
def test_targets_must_be_of_the_kinds_that_are_adapted(values, message):
    config = AdapterConfig("LORA", **values)
    with pytest.raises(ModelError, match=message):
        require_kinds(find_targets(blueprint("llama"), config), config, ("linear",))


def test_unknown_model_types_have_no_defaults():
    message = "no default targets for LORA on model type 'phi3'; give .*, such as o_proj, qkv_proj"
    with pytest.raises(ModelError, match=message):
        find_targets(blueprint("phi3"), AdapterConfig("LORA"))
    # With parameters there need be no modules.
    config = AdapterConfig("LORA", target_parameters=["qkv_proj.weight"])
    assert find_targets(blueprint("phi3"), config).modules == ()


@pytest.mark.parametrize("name", ["exclude_modules", "target_modules"])
def test_expressions_must_be_valid(name):
    values = {"target_modules": ["q_proj"], name: "("}
    with pytest.raises(ModelError, match="not a valid one"):
        find_targets(blueprint("llama"), AdapterConfig("LORA", **values))


@pytest.mark.parametrize("peft_type", ["LORA", "ADALORA", "RANDLORA"])
def test_state_space_layers_are_refused(peft_type):
    build = Builder()
    build.linear("backbone.layers.0.mixer.in_proj", 8, 32)
    build.linear("backbone.layers.0.mixer.out_proj", 16, 8)
    mamba = Blueprint("mamba", "MambaForCausalLM", tuple(build.modules))
    config = AdapterConfig(peft_type, target_modules="all-linear", total_step=1)
    with pytest.raises(ModelError, match=r"mixer\.out_proj, which .* can't adapt in mamba"):
        find_targets(mamba, config)
    assert len(found(mamba, target_modules=["in_proj"])) == 1


@pytest.mark.parametrize(
    ("patterns", "name", "value"),
    [
        ({"q_proj": 2}, "model.layers.0.self_attn.q_proj", 2),
        ({"proj": 2}, "model.layers.0.self_attn.q_proj", 8),
        ({".*proj": 2, "q_proj": 3}, "model.layers.0.self_attn.q_proj", 2),
        ({"^model.layers.0.*": 4}, "model.layers.0.self_attn.q_proj", 4),
        ({"layers.0.*": 4}, "model.layers.10.self_attn.q_proj", 8),
        ({"q_proj|k_proj": 5}, "q_proj", 5),
    ],
)
def test_patterns_are_read_as_peft_does(patterns, name, value):
    assert patterns.get(get_pattern_key(patterns.keys(), name), 8) == value
    assert pattern_value(patterns, name, 8) == value


def test_near_names_are_those_of_the_model():
    assert near_names(blueprint("llama"), "qproj")[0] == "q_proj"
    assert near_names(blueprint("llama"), "model.layers.0.self_attn.q_pro")[0].endswith(
        "0.self_attn.q_proj"
    )


def test_mixtures_of_other_types_keep_their_names():
    """PEFT renames targets of the model types in facts.json only."""
    renamed = replace(blueprint("qwen3_moe"), model_type="qwen2_moe")
    config = AdapterConfig("LORA", target_modules=["q_proj", "gate_proj", "up_proj"])
    assert len(peft_change(renamed, config).groups) == 1
    assert peft_change(renamed, config).unmatched == ("gate_proj", "up_proj")
