from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, blueprint

from tunemath.errors import ModelError
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}

# Each case: its settings, the families for which PEFT refuses them: GPT-2, of transformers' Conv1D.
CASES = {
    "default": ({}, (*NO_DEFAULTS, "gpt2")),
    "all-linear": (ALL, ("gpt2",)),
    "routed": ({**ALL, "r": 3, "n_tasks": 5, "n_skills": 2, "n_splits": 4}, ("gpt2",)),
    "uneven": ({**ALL, "r": 3, "n_splits": 5}, ("gpt2",)),
    "saved": ({**ALL, "modules_to_save": ["norm"]}, ("gpt2",)),
    "no-rank": ({**ALL, "r": 0}, FAMILIES),
    "unknown": ({**ALL, "poly_type": "mono"}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "POLY", values) == (family not in refused)


def test_a_layer_has_its_skills_and_a_router_by_task():
    config = AdapterConfig(
        "POLY", target_modules=["up_proj"], r=3, n_tasks=5, n_skills=2, n_splits=4
    )
    (group,) = peft_change(blueprint("llama"), config).groups
    assert group.trainable == 2 * 3 * (32 + 48) + 5 * 4 * 2


def test_uneven_splits_are_said_to_fail():
    config = AdapterConfig("POLY", target_modules=["up_proj"], n_splits=5)
    (note,) = peft_change(blueprint("llama"), config).notes
    assert "n_splits 5 does not divide the 32 inputs and 48 outputs" in note


@pytest.mark.parametrize("name", ["r", "n_tasks", "n_skills", "n_splits"])
def test_sizes_are_positive(name):
    with pytest.raises(ModelError, match=f"POLY: {name} is 0; set it to a whole number of 1 or"):
        peft_change(blueprint("llama"), AdapterConfig("POLY", **{name: 0}))
