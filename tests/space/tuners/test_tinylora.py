from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, blueprint

from tunemath.errors import ModelError
from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, peft_change

EMBEDDINGS = r".*\.(embed_tokens|wte|word_embeddings)"
NORMS = ".*(norm|ln_1|LayerNorm|layer_norm)"

# Each case: its settings, the families for which PEFT refuses them.
CASES = {
    "default": ({}, NO_DEFAULTS),
    "all-linear": ({"target_modules": "all-linear", "u": 3, "r": 50}, ()),
    "tied-in-parts": ({"target_modules": "all-linear", "u": 3, "weight_tying": 0.4}, ()),
    "tied-by-halves": ({"u": 5, "weight_tying": 0.875}, NO_DEFAULTS),
    "tied": ({"u": 13, "weight_tying": 1.0, "bias": "tinylora_only"}, NO_DEFAULTS),
    "embeddings": ({"target_modules": EMBEDDINGS, "u": 3, "bias": "tinylora_only"}, ("vit",)),
    "norms": ({"target_modules": NORMS}, FAMILIES),
    "tied-too-much": ({"weight_tying": 1.5}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "TINYLORA", values) == (family not in refused)


def test_thirteen_parameters():
    """The paper's title (arXiv 2602.04118): 13 parameters, shared by all layers."""
    config = AdapterConfig("TINYLORA", u=13, weight_tying=1.0, target_modules="all-linear")
    assert Ledger(blueprint("llama"), peft_change(blueprint("llama"), config)).trainable == 13


def test_tying_is_a_fraction():
    with pytest.raises(ModelError, match=r"weight_tying is 2; set it to a number from 0 to 1"):
        peft_change(blueprint("llama"), AdapterConfig("TINYLORA", weight_tying=2))
