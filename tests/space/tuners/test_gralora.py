from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, blueprint

from tunemath.errors import ModelError
from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}

# Each case: its settings, the families for which PEFT refuses them. The classifier of ViT has 3
# outputs, which 2 and 4 do not divide.
CASES = {
    "default": ({}, NO_DEFAULTS),
    "all-linear": ({**ALL, "r": 8, "gralora_k": 4}, ("vit",)),
    "hybrid": ({**ALL, "r": 6, "gralora_k": 1, "hybrid_r": 3, "bias": "gralora_only"}, ()),
    "indivisible-widths": ({**ALL, "r": 10, "gralora_k": 5}, FAMILIES),
    "indivisible-rank": ({**ALL, "r": 9, "gralora_k": 2}, FAMILIES),
    "negative-hybrid": ({**ALL, "hybrid_r": -1}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "GRALORA", values) == (family not in refused)


def test_it_costs_what_lora_of_the_same_rank_costs():
    """The paper's claim (arXiv 2505.20355): the parameters of LoRA, however many blocks."""
    model = blueprint("llama")
    lora = Ledger(model, peft_change(model, AdapterConfig("LORA", r=8, **ALL))).trainable
    for k in (1, 2, 4, 8):
        config = AdapterConfig("GRALORA", r=8, gralora_k=k, **ALL)
        assert Ledger(model, peft_change(model, config)).trainable == lora


def test_blocks_must_divide_the_rank_and_both_widths():
    with pytest.raises(ModelError, match=r"r 9 and gralora_k 2; set r to a multiple.*such as 10"):
        peft_change(blueprint("llama"), AdapterConfig("GRALORA", r=9))
    with pytest.raises(
        ModelError, match="q_proj takes 32 and gives 32; set gralora_k to a divisor"
    ):
        peft_change(blueprint("llama"), AdapterConfig("GRALORA", r=9, gralora_k=3))
