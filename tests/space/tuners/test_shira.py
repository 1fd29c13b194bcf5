from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, blueprint

from tunemath.errors import ModelError
from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}

# Each case: its settings, the families for which PEFT refuses them: GPT-2, of transformers' Conv1D.
CASES = {
    "default": ({}, FAMILIES),  # tiny models have fewer entries
    "smaller": ({"r": 10}, (*NO_DEFAULTS, "gpt2")),
    "all-linear": ({**ALL, "r": 2}, ("gpt2",)),
    "own-mask": ({**ALL, "r": 1, "mask_type": "mine", "init_weights": False}, ("gpt2",)),
    "no-rank": ({**ALL, "r": 0}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "SHIRA", values) == (family not in refused)


def test_it_costs_what_lora_of_the_same_rank_costs():
    model = blueprint("llama")
    for r in (1, 4, 8):
        ours, lora = (
            Ledger(model, peft_change(model, AdapterConfig(kind, r=r, **ALL))).trainable
            for kind in ("SHIRA", "LORA")
        )
        assert ours == lora


def test_a_weight_has_only_so_many_entries():
    with pytest.raises(ModelError, match=r"1536 entries of .*v_proj, which has 512; set r to at m"):
        peft_change(blueprint("llama"), AdapterConfig("SHIRA", target_modules=["v_proj"]))
