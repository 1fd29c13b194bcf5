from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, agree_on, blueprint
from torch import nn

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.space.blueprint import Blueprint, Builder
from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}
DOWN = ["down_proj", "c_proj", "wo", "fc2", "dense"]

# Each case: its settings, the families for which PEFT refuses them.
CASES = {
    "default": ({}, NO_DEFAULTS),
    "all-linear": (ALL, NO_DEFAULTS),
    "outputs": ({**ALL, "feedforward_modules": []}, ()),
    "inputs": ({**ALL, "feedforward_modules": DOWN, "init_ia3_weights": False}, ()),
    # No dot is asked for before the end of a name: these are up_proj, gate_up_proj, q_proj, wo.
    "ends": ({**ALL, "feedforward_modules": ["_proj", "o", "se"]}, ()),
    "pattern": ({**ALL, "feedforward_modules": r".*\.(down_proj|wo|c_fc|dense)"}, ()),
    "named": ({"target_modules": DOWN, "feedforward_modules": DOWN}, ("qwen3_moe", "mixtral")),
    "not-a-target": ({"target_modules": DOWN, "feedforward_modules": ["up_proj"]}, FAMILIES),
    "norms": (
        {"target_modules": ".*(norm|ln_1|LayerNorm|layer_norm)", "feedforward_modules": []},
        FAMILIES,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "IA3", values) == (family not in refused)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv1d(8, 12, 3)
        self.two = nn.Conv2d(8, 12, (3, 5))
        self.three = nn.Conv3d(8, 12, 3, bias=False)


@pytest.mark.parametrize("inputs", [False, True])
@pytest.mark.parametrize("name", ["one", "two", "three"])
def test_convolutions_over_two_and_three_dimensions_are_counted(name, inputs):
    values = {"target_modules": [name], "feedforward_modules": [name] if inputs else []}
    assert agree_on(Convolutions(), "IA3", values) == (name != "one")
    if name != "one":
        (group,) = peft_change(blueprint_of(Convolutions()), AdapterConfig("IA3", **values)).groups
        assert group.trainable == (8 if inputs else 12)


def t0_3b() -> Blueprint:
    """T5-LM-adapt XL: D 2048, 32 heads of 64, 5120 inside the gated feed-forward block."""
    build = Builder()
    for stack, attentions in (
        ("encoder", ("SelfAttention",)),
        ("decoder", ("SelfAttention", "EncDecAttention")),
    ):
        for i in range(24):
            for layer, attention in enumerate(attentions):
                for name in ("q", "k", "v", "o"):
                    build.linear(f"{stack}.block.{i}.layer.{layer}.{attention}.{name}", 2048, 2048)
            dense = f"{stack}.block.{i}.layer.{len(attentions)}.DenseReluDense"
            for name in ("wi_0", "wi_1"):
                build.linear(f"{dense}.{name}", 2048, 5120)
            build.linear(f"{dense}.wo", 5120, 2048)
    return Blueprint("t5", "T5ForConditionalGeneration", tuple(build.modules))


def test_counts_are_the_papers():
    """L (d_k + d_v + d_ff) in the encoder, L (2 d_k + 2 d_v + d_ff) in the decoder (§3.3)."""
    model = t0_3b()
    config = AdapterConfig("IA3", target_modules=["k", "v", "wo"], feedforward_modules=["wo"])
    published = 24 * (2048 + 2048 + 5120) + 24 * (2 * 2048 + 2 * 2048 + 5120)
    assert Ledger(model, peft_change(model, config)).trainable == published == 540_672


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("phi3", ALL, "no default feedforward_modules for IA3 on model type 'phi3'"),
        (
            "llama",
            {"target_modules": ["q_proj"], "feedforward_modules": ["up_proj"]},
            "feedforward_modules has up_proj, which target_modules does not",
        ),
        ("llama", {**ALL, "feedforward_modules": "*"}, "not a valid one"),
    ],
)
def test_feedforward_modules_must_be_known(family, values, message):
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint(family), AdapterConfig("IA3", **values))
