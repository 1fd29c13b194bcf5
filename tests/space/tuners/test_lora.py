from __future__ import annotations

import dataclasses

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, agree_on, blueprint
from torch import nn

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.space.peft import AdapterConfig, Group, peft_change

ALL = {"target_modules": "all-linear"}
PROJECTIONS = r".*\.(q_proj|v_proj|qkv_proj|c_attn|q|v|query|value)"
EMBEDDINGS = ["embed_tokens", "wte", "shared", "word_embeddings", "position_embeddings"]
UP = ["up_proj", "gate_up_proj", "c_fc", "wi", "fc1"]
# The families whose mixtures transformers 5 holds as single tensors, and those of Conv1D.
MIXTURES, TRANSPOSED = ("qwen3_moe", "mixtral"), ("gpt2",)
NO_CONVOLUTIONS = [family for family in FAMILIES if family not in ("vit", "whisper")]
NO_STACK = ("gpt2", "t5", "vit", "whisper")
# Where layers is the list of layers; where a target ends in _proj or ery.
LISTED = [family for family in FAMILIES if family not in ("gpt2", "t5", "bert")]
NAMED = [family for family in FAMILIES if family not in ("gpt2", "t5")]
TIED = {"ensure_weight_tying": True}

# Each case: its settings, the families for which PEFT refuses them.
CASES = {
    "default": ({}, (*NO_DEFAULTS, "mixtral")),
    "all-linear": (ALL, ()),
    "rank": ({**ALL, "r": 3, "lora_alpha": 32, "lora_dropout": 0.1, "use_rslora": True}, MIXTURES),
    "no-rank": ({**ALL, "r": 0}, FAMILIES),
    "expression": ({"target_modules": PROJECTIONS, "r": 3}, ()),
    "block": ({"target_modules": ".*(attn|attention|SelfAttention)"}, FAMILIES),
    "norms": ({"target_modules": ".*(norm|ln_1|LayerNorm|layer_norm)"}, FAMILIES),
    "nothing": ({"target_modules": ["nothing"]}, FAMILIES),
    "none": ({"target_modules": []}, FAMILIES),
    "ranks": ({**ALL, "rank_pattern": {"down_proj": 3, "q_proj|query|q": 2, ".*0.*": 5}}, ()),
    "excluded": ({**ALL, "exclude_modules": ["q_proj", "query", "dense", "mlp.c_proj"]}, ()),
    "excluded-expression": ({**ALL, "exclude_modules": r".*(0|1)\..*(q|query).*"}, ()),
    "layer": (
        {"target_modules": [*UP, "query"], "layers_to_transform": 1},
        MIXTURES,
    ),
    "layers-named": (
        {
            "target_modules": ["q_proj", "c_attn", "q", "query"],
            "layers_to_transform": [0, 5],
            "layers_pattern": ["layers", "h", "block", "layer"],
        },
        ("phi3",),
    ),
    "layers-of-all": ({**ALL, "layers_to_transform": [0]}, FAMILIES),
    "biases": ({**ALL, "bias": "all"}, ()),
    "biases-of-targets": ({**ALL, "bias": "lora_only"}, ()),
    "biases-unknown": ({**ALL, "bias": "some"}, FAMILIES),
    "dora": ({"target_modules": PROJECTIONS, "use_dora": True}, ()),
    "dora-embeddings": ({"target_modules": EMBEDDINGS, "use_dora": True}, ("vit",)),
    "lora-bias": ({"target_modules": PROJECTIONS, "lora_bias": True}, ()),
    "lora-bias-embeddings": ({"target_modules": EMBEDDINGS, "lora_bias": True}, FAMILIES),
    "convolutions": ({"target_modules": ["conv1", "conv2", "projection"], "r": 3}, NO_CONVOLUTIONS),
    "pissa": ({"target_modules": "all-linear", "init_lora_weights": "pissa"}, MIXTURES),
    "orthogonal-odd": ({**ALL, "init_lora_weights": "orthogonal", "r": 3}, FAMILIES),
    "mica": ({"target_modules": PROJECTIONS, "init_lora_weights": "mica"}, ()),
    "mica-embeddings": ({"target_modules": EMBEDDINGS, "init_lora_weights": "mica"}, ("vit",)),
    "kasa": ({"target_modules": PROJECTIONS, "kasa_config": {}}, TRANSPOSED),
    "monteclora": ({"target_modules": PROJECTIONS, "monteclora_config": {"num_samples": 3}}, ()),
    "velora": ({"target_modules": PROJECTIONS, "velora_config": {"num_groups": 4}}, ()),
    "alora": ({"target_modules": PROJECTIONS, "alora_invocation_tokens": [1, 2]}, ()),
    "block-diagonal": (
        {
            "target_modules": PROJECTIONS,
            "use_bdlora": {
                "target_modules_bd_a": ["q", "query"],
                "target_modules_bd_b": ["value", "v_proj", ".v"],
                "nblocks": 4,
                "match_strict": False,
            },
        },
        ("phi3",),
    ),
    "two-variants": ({**ALL, "use_dora": True, "kasa_config": {}}, FAMILIES),
    "saved": ({"target_modules": PROJECTIONS, "modules_to_save": ["norm", "lm_head", "0.mlp"]}, ()),
    "saved-inside": ({"target_modules": PROJECTIONS, "modules_to_save": ["mlp", "fc1", "wi"]}, ()),
    "saved-list": ({"target_modules": PROJECTIONS, "modules_to_save": ["layers"]}, LISTED),
    "saved-target": ({"target_modules": PROJECTIONS, "modules_to_save": ["_proj", "ery"]}, NAMED),
    "saved-tied": (
        {"target_modules": PROJECTIONS, "modules_to_save": ["embed_tokens", "lm_head"], **TIED},
        (),
    ),
    "tied": ({"target_modules": ["q_proj", "c_attn", "q", "query", "lm_head"], **TIED}, ()),
    "tokens": ({"target_modules": PROJECTIONS, "trainable_token_indices": [1, 2, 60]}, ("vit",)),
    "tokens-of-both": (
        {
            "target_modules": PROJECTIONS,
            "trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [1]},
        },
        ("gpt2", "bert", "vit", "whisper"),
    ),
    "tokens-outside": ({"target_modules": PROJECTIONS, "trainable_token_indices": [64]}, FAMILIES),
    "replicated": ({**ALL, "layer_replication": [[0, 2], [1, 2]]}, NO_STACK),
    "cut-short": ({**ALL, "layer_replication": [[1, 2]]}, NO_STACK),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "LORA", values) == (family not in refused)


EXPERTS = ["gate_up_proj", "experts.down_proj"]

# What mixtures make of their layers' former names: settings, the families that refuse them.
MIXED = {
    "experts": ({"target_modules": [], "target_parameters": EXPERTS}, ()),
    "one": ({"target_modules": [], "target_parameters": ["down_proj"], "r": 3}, ()),
    "beside": ({"target_modules": ["q_proj"], "target_parameters": EXPERTS}, ()),
    "router": ({"target_modules": ["o_proj"], "target_parameters": ["gate.weight"]}, ()),
    "former": ({"target_modules": ["gate_proj", "up_proj", "down_proj"], "r": 3}, ("mixtral",)),
    "former-mixtral": ({"target_modules": ["w1", "w2", "w3", "q_proj"]}, ()),
    "former-gate": ({"target_modules": ["gate", "k_proj"], "r": 2}, ()),
    "half": ({"target_modules": ["gate_proj", "q_proj"]}, ("qwen3_moe",)),
    "half-mixtral": ({"target_modules": ["w3", "q_proj"]}, ("mixtral",)),
    "expression": ({"target_modules": r".*\.(q_proj|gate_proj|up_proj|w1|w3)"}, ()),
    "expression-down": ({"target_modules": r".*\.1\..*(down_proj|w2|v_proj)"}, ()),
    "ranks": ({**ALL, "rank_pattern": {"down_proj": 3, "q_proj": 2}}, ()),
    "own-rank": ({**ALL, "rank_pattern": {r".*\.gate_up_proj": 3}}, ()),
    "own-rank-first": ({**ALL, "rank_pattern": {"gate_up_proj": 3}}, ()),
    "dropout": ({**ALL, "lora_dropout": 0.1}, MIXTURES),
    "dora": ({"target_modules": [], "target_parameters": EXPERTS, "use_dora": True}, MIXTURES),
    "norms": ({"target_modules": [], "target_parameters": ["norm.weight"]}, MIXTURES),
    "target": ({"target_modules": ["q_proj"], "target_parameters": ["q_proj.weight"]}, MIXTURES),
    "embedding": ({"target_modules": [], "target_parameters": ["embed_tokens.weight"]}, ()),
    "as-text": ({"target_modules": [], "target_parameters": "down_proj"}, MIXTURES),
    "saved": ({"target_parameters": EXPERTS, "target_modules": [], "modules_to_save": ["mlp"]}, ()),
}  # fmt: skip


@pytest.mark.parametrize("case", MIXED)
@pytest.mark.parametrize("family", MIXTURES)
def test_experts_are_adapted_as_in_the_live_model(family, case):
    values, refused = MIXED[case]
    assert agree(family, "LORA", values) == (family not in refused)


def test_experts_that_became_one_tensor_have_their_ranks_together():
    config = AdapterConfig("LORA", r=3, target_modules=["gate_proj", "up_proj", "down_proj"])
    groups = {
        group.parts[1].shape: group for group in peft_change(blueprint("qwen3_moe"), config).groups
    }
    # 4 experts; gate_up_proj (4, 48, 32) has rank 6, down_proj (4, 32, 24) has rank 3.
    assert groups[48, 24].trainable == 4 * 6 * (32 + 48)
    assert groups[32, 12].trainable == 4 * 3 * (24 + 32)


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(10, 6)
        self.line = nn.Conv1d(4, 6, 3)
        self.plane = nn.Conv2d(4, 6, (3, 5), bias=False)
        self.space = nn.Conv3d(4, 6, 3)
        self.attend = nn.MultiheadAttention(8, 2)
        self.apart = nn.MultiheadAttention(8, 2, kdim=4)
        self.linear = nn.Linear(8, 6)
        self.table = nn.Parameter(nn.Linear(8, 6).weight.detach())


SETTINGS = {
    "plain": {},
    "rank": {"r": 3, "use_rslora": True},
    "bias": {"bias": "lora_only", "r": 2},
    "lora-bias": {"lora_bias": True},
    "dora": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "eva": {"init_lora_weights": "eva"},
    "lora-ga": {"init_lora_weights": "lora_ga"},
    "olora": {"init_lora_weights": "olora"},
    "unknown": {"init_lora_weights": "unknown"},
    "mica": {"init_lora_weights": "mica", "r": 2},
    "kasa": {"kasa_config": {"beta": 0.1}, "r": 2},
}
# For each layer, the settings that PEFT refuses.
REFUSED = {
    "rows": ("lora-bias", "kasa"),
    "line": ("eva", "olora", "unknown", "mica", "kasa"),
    "plane": ("eva", "olora", "unknown", "mica", "kasa"),
    "space": ("eva", "olora", "unknown", "mica", "kasa"),
    "attend": ("dora", "lora-ga", "olora", "unknown", "mica", "kasa"),
    "apart": SETTINGS,
    "linear": ("unknown",),
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("layer", REFUSED)
def test_every_kind_of_layer_is_counted(layer, settings):
    values = {"target_modules": [layer], **SETTINGS[settings]}
    assert agree_on(Layers(), "LORA", values) == (settings not in REFUSED[layer])


def one_group(layer: str, **values) -> Group:
    (group,) = peft_change(
        blueprint_of(Layers()), AdapterConfig("LORA", target_modules=[layer], **values)
    ).groups
    return group


@pytest.mark.parametrize(
    ("layer", "values", "trainable"),
    [
        ("linear", {"r": 2}, 2 * (8 + 6)),
        ("linear", {"r": 2, "use_dora": True}, 2 * (8 + 6) + 6),
        ("linear", {"r": 2, "lora_bias": True}, 2 * (8 + 6) + 6),
        ("linear", {"r": 2, "kasa_config": {}}, 2 * (8 + 6) + 2),
        ("linear", {"r": 2, "monteclora_config": {"num_samples": 5}}, 2 * (8 + 6) + 2 + 5),
        ("linear", {"r": 2, "init_lora_weights": "mica"}, 2 * 8),
        # A start from the matrix itself has no more singular vectors than it.
        ("linear", {"r": 7, "init_lora_weights": "pissa"}, 6 * (8 + 6)),
        ("linear", {"r": 7, "init_lora_weights": "pissa_niter_4"}, 6 * (8 + 6)),
        ("linear", {"r": 7, "init_lora_weights": "olora"}, 6 * (8 + 6)),
        ("rows", {"r": 2}, 2 * (10 + 6)),
        ("line", {"r": 2}, 2 * (4 * 3 + 6)),
        ("plane", {"r": 2}, 2 * (4 * 15 + 6)),
        ("space", {"r": 2}, 2 * (4 * 27 + 6)),
    ],
)
def test_layers_have_the_parameters_of_the_formula(layer, values, trainable):
    assert one_group(layer, **values).trainable == trainable


def test_attention_is_adapted_at_both_projections():
    config = AdapterConfig("LORA", target_modules=["attend"], r=2)
    groups = peft_change(blueprint_of(Layers()), config).groups
    assert [g.trainable for g in groups] == [2 * (8 + 24), 2 * (8 + 8)]


def test_parameters_of_the_model_itself_are_refused():
    assert not agree_on(Layers(), "LORA", {"target_modules": [], "target_parameters": ["table"]})


@pytest.mark.parametrize("group_size", [2, 4, 3])
def test_qalora_pools_the_inputs_of_gptq_layers(group_size):
    model = dataclasses.replace(blueprint_of(Layers()), quantisation="gptq")
    config = AdapterConfig(
        "LORA", target_modules=["linear"], r=2, use_qalora=True, qalora_group_size=group_size
    )
    if 8 % group_size:
        with pytest.raises(ModelError, match="set qalora_group_size to a divisor"):
            peft_change(model, config)
    else:
        (group,) = peft_change(model, config).groups
        assert group.trainable == 2 * (8 // group_size + 6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_modules": ["q_proj"], "r": -1}, "r is -1; set it to a whole number of 1 or more"),
        ({"target_modules": ["mlp"]}, "match model.layers.0.mlp, a block of layers"),
        ({"target_modules": ["norm"]}, "match model.norm, whose kind is norm"),
        ({"target_modules": "*"}, "is a string, so a regular expression .* not a valid one"),
        ({"target_modules": 3}, "expected a list of names, a regular expression, or all-linear"),
        ({**ALL, "layers_to_transform": 1}, "say the layers in a regular expression"),
        ({"layers_pattern": "h"}, "give the layers too"),
        ({"use_dora": True, "lora_bias": True}, "lora_bias goes with neither DoRA"),
        ({"use_dora": True, "alora_invocation_tokens": [1]}, "variants that PEFT does not combine"),
        ({"kasa_config": {}, "r": 32}, "kasa_config is set and r is 32"),
        ({"velora_config": {"num_groups": 0}}, "num_groups 0; set it to a whole number of 1"),
        ({"arrow_config": {}}, "count one of the adapters"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head'; expected a list of names"),
        (
            {"target_modules": ["lm_head"], "modules_to_save": ["layers"]},
            "match model.layers, a list of layers",
        ),
        ({"modules_to_save": ["_proj"]}, "q_proj is adapted, and copied by modules_to_save"),
        ({"layer_replication": [[0, 3]]}, r"has \[0, 3\]; model.layers has layers 0 to 1"),
        ({"layer_replication": [2]}, r"has 2; model.layers has layers 0 to 1"),
        ({"trainable_token_indices": [64]}, "expected a list of numbers from 0 to 63"),
        ({"trainable_token_indices": {"wte": [1]}}, "'wte', which matches no module"),
        (
            {"trainable_token_indices": {"lm_head": [1]}, "modules_to_save": ["lm_head"]},
            "lm_head is in trainable_token_indices and in modules_to_save, which trains all of it",
        ),
        (
            {"use_bdlora": {"target_modules_bd_a": ["q_proj"], "nblocks": 3}, "r": 6},
            "an nblocks that divides r and 32",
        ),
        ({"use_bdlora": {"target_modules_bd_a": ["k_proj"]}}, "neither of target_modules_bd_a"),
        ({"target_parameters": "x"}, "'x'; expected a list of names, no expression"),
    ],
)  # fmt: skip
def test_refusals_say_what_was_given_and_what_to_do(values, message):
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint("llama"), AdapterConfig("LORA", **values))
