from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, blueprint

from tunemath.errors import ModelError
from tunemath.space.peft import AdapterConfig, peft_change

# Each case: its settings, the families for which PEFT refuses them.
CASES = {
    "default": ({}, NO_DEFAULTS),
    "all-linear": ({"target_modules": "all-linear", "theta_d_length": 100, "r": 2}, ()),
    "bias": ({"target_modules": "all-linear", "bias": "unilora_only", "save_indices": True}, ()),
    "no-vector": ({"target_modules": "all-linear", "theta_d_length": 0}, FAMILIES),
    "other-bias": ({"target_modules": "all-linear", "bias": "lora_only"}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "UNILORA", values) == (family not in refused)


def test_the_vector_is_as_long_whatever_it_stands_for():
    for values in ({"r": 1}, {"r": 64}, {"target_modules": "all-linear"}):
        change = peft_change(blueprint("llama"), AdapterConfig("UNILORA", **values))
        assert [each.trainable for each in change.shared] == [256]
        assert not any(group.trainable for group in change.groups)


def test_bias_must_be_known():
    config = AdapterConfig("UNILORA", bias="lora_only")
    with pytest.raises(
        ModelError, match="bias is 'lora_only'; set it to one of none, all, unilora"
    ):
        peft_change(blueprint("llama"), config)
