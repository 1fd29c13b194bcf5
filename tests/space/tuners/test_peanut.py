from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, blueprint

from tunemath.errors import ModelError
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}

# Each case: its settings, the families for which PEFT refuses them: GPT-2, of transformers' Conv1D.
CASES = {
    "default": ({}, (*NO_DEFAULTS, "gpt2")),
    "all-linear": ({**ALL, "r": 3}, ("gpt2",)),
    "deep": ({**ALL, "r": 5, "depth": 2, "act_fn": "gelu"}, ("gpt2",)),
    "layers": ({**ALL, "r": 3, "layers_to_transform": 1}, ("gpt2",)),
    "lost-pattern": ({**ALL, "layers_pattern": "layers"}, FAMILIES),
    "no-rank": ({**ALL, "r": 0}, FAMILIES),
    "negative-depth": ({**ALL, "depth": -1}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "PEANUT", values) == (family not in refused)


def test_depth_may_not_be_negative():
    config = AdapterConfig("PEANUT", depth=-1)
    with pytest.raises(ModelError, match="depth is -1; set it to a whole number of 0 or more"):
        peft_change(blueprint("llama"), config)
