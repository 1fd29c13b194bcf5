from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Builder
from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, peft_change

# Each case: the tuner type, its settings, the families for which PEFT refuses them.
CASES = {
    "vera": ("VERA", {}, NO_DEFAULTS),
    "vera-all-linear": ("VERA", {"target_modules": "all-linear", "r": 5}, ()),
    "vera-bias": ("VERA", {"target_modules": "all-linear", "r": 5, "bias": "vera_only"}, ()),
    "vera-no-projection": ("VERA", {"r": 3, "save_projection": False}, NO_DEFAULTS),
    "vera-norms": ("VERA", {"target_modules": ".*(norm|ln_1|LayerNorm|layer_norm)"}, FAMILIES),
    "pvera": ("PVERA", {}, NO_DEFAULTS),
    "pvera-all-linear": ("PVERA", {"target_modules": "all-linear", "r": 5}, ()),
    "pvera-bias": ("PVERA", {"target_modules": "all-linear", "bias": "pvera_only"}, ()),
    "pvera-no-rank": ("PVERA", {"target_modules": "all-linear", "r": 0}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    peft_type, values, refused = CASES[case]
    assert agree(family, peft_type, values) == (family not in refused)


def llama2_7b() -> Blueprint:
    build = Builder()
    for i in range(32):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            build.linear(f"model.layers.{i}.self_attn.{name}", 4096, 4096)
        for name in ("gate_proj", "up_proj"):
            build.linear(f"model.layers.{i}.mlp.{name}", 4096, 11008)
        build.linear(f"model.layers.{i}.mlp.down_proj", 11008, 4096)
    return Blueprint("llama", "LlamaForCausalLM", tuple(build.modules))


def roberta(layers: int, width: int) -> Blueprint:
    build = Builder()
    for i in range(layers):
        for name in ("query", "value"):
            build.linear(f"encoder.layer.{i}.attention.self.{name}", width, width, bias=True)
    return Blueprint("roberta", "RobertaModel", tuple(build.modules))


def trainable(model: Blueprint, r: int) -> int:
    config = AdapterConfig("VERA", r=r, target_modules="all-linear")
    return Ledger(model, peft_change(model, config)).trainable


@pytest.mark.parametrize("r", [1, 256, 1024])
@pytest.mark.parametrize(("layers", "width"), [(12, 768), (24, 1024)])
def test_vera_counts_are_the_papers_formula(layers, width, r):
    """|Θ| = L_tuned (d_model + r) of arXiv 2310.11454, two tuned matrices a layer."""
    assert trainable(roberta(layers, width), r) == 2 * layers * (width + r)


def test_vera_counts_are_the_papers_figure():
    """The abstract of version 1 of arXiv 2310.11454: "just 1.4M parameters using the Llama2 7B
    model". It names no rank; PEFT's, 256, on all linear layers gives it.
    """
    assert round(trainable(llama2_7b(), 256) / 1e6, 1) == 1.4


def test_shared_projections_are_named_as_left_out_of_the_total():
    model = llama2_7b()
    (note,) = peft_change(model, AdapterConfig("VERA", target_modules="all-linear")).notes
    assert f"{256 * (11008 + 11008):,} frozen numbers" in note
    (note,) = peft_change(model, AdapterConfig("PVERA", target_modules="all-linear")).notes
    assert f"{256 * (2 * 11008 + 11008):,} frozen numbers" in note


def test_rank_must_be_positive():
    with pytest.raises(ModelError, match="VERA: r is 0; set it to a whole number of 1 or more"):
        peft_change(roberta(1, 8), AdapterConfig("VERA", r=0))
