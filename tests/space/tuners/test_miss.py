from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, blueprint

from tunemath.errors import ModelError
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}
# GPT-2 has transformers' Conv1D; the classifier of ViT has 3 outputs.
REFUSED = ("gpt2", "vit")

# Each case: its settings, the families for which PEFT refuses them.
CASES = {
    "default": ({}, FAMILIES),  # tiny models are narrower than 64
    "smaller": ({"r": 32, "bias": "MiSS_only"}, (*NO_DEFAULTS, "gpt2")),
    "all-linear": ({**ALL, "r": 7, "init_weights": False}, ("gpt2",)),
    "bat": ({**ALL, "r": 8, "init_weights": "bat"}, REFUSED),
    "bat-indivisible": ({**ALL, "r": 10, "init_weights": "bat"}, FAMILIES),
    "mini": ({**ALL, "r": 9, "mini_r": 4, "init_weights": "mini"}, REFUSED),
    "mini-by-default": ({**ALL, "r": 9, "init_weights": "mini"}, ("gpt2",)),
    "mini-indivisible": ({**ALL, "r": 9, "mini_r": 5, "init_weights": "mini"}, FAMILIES),
    "no-mini": ({**ALL, "r": 9, "mini_r": 0, "init_weights": "mini"}, FAMILIES),
    "no-rank": ({**ALL, "r": 0}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "MISS", values) == (family not in refused)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "MISS has r 64, and .*q_proj takes 32 and gives 32; set r to at most 32"),
        ({"r": 3, "init_weights": "bat"}, "MISS has r 3 with bat, .*; set r to a divisor of both"),
        (
            {"r": 3, "mini_r": 5, "init_weights": "mini"},
            "MISS has mini_r 5, .*; set mini_r to a divisor of 32",
        ),
    ],
)
def test_the_block_must_fit(values, message):
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint("llama"), AdapterConfig("MISS", **values))


def test_a_layer_costs_its_outputs_times_r():
    """Half of LoRA's count for a square layer (arXiv 2409.15371)."""
    config = AdapterConfig("MISS", target_modules=["q_proj", "up_proj"], r=8)
    assert [g.trainable for g in peft_change(blueprint("llama"), config).groups] == [8 * 32, 8 * 48]
