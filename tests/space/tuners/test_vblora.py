from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, blueprint

from tunemath.errors import ModelError
from tunemath.space.peft import AdapterConfig, peft_change

# Each case: its settings, the families for which PEFT refuses them. Tiny models are narrower than
# the default vector; the classifier of ViT has 3 outputs.
CASES = {
    "default": ({}, FAMILIES),
    "shorter": ({"vector_length": 8}, (*NO_DEFAULTS, "mixtral")),
    "all-linear": (
        {"target_modules": "all-linear", "vector_length": 4, "num_vectors": 7, "r": 3},
        ("vit",),
    ),
    "bias": (
        {"target_modules": "all-linear", "vector_length": 1, "num_vectors": 3,
         "bias": "vblora_only"},
        (),
    ),
    "topk": ({"vector_length": 8, "topk": 0}, FAMILIES),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "VBLORA", values) == (family not in refused)


def test_a_vector_must_divide_both_widths():
    with pytest.raises(ModelError, match=r"q_proj takes 32 and gives 32; set vector_length to a"):
        peft_change(blueprint("llama"), AdapterConfig("VBLORA"))
