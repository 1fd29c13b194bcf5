from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, blueprint

from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, peft_change

# Each case: its settings, the families for which PEFT refuses them: GPT-2, of transformers' Conv1D.
CASES = {
    "default": ({}, (*NO_DEFAULTS, "gpt2")),
    "all-linear": ({"target_modules": "all-linear", "init_weights": False}, ("gpt2",)),
    "embeddings": ({"target_modules": r".*\.(embed_tokens|wte|word_embeddings)"}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "BEFT", values) == (family not in refused)


def test_it_costs_what_the_biases_of_the_values_do():
    """Hand arithmetic: two layers whose values are 2 heads of 8 wide."""
    change = peft_change(blueprint("llama"), AdapterConfig("BEFT"))
    assert Ledger(blueprint("llama"), change).trainable == 2 * 16
