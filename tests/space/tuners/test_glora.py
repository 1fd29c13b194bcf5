from __future__ import annotations

import copy

import peft
import pytest
import torch
from peft_models import FAMILIES, NO_DEFAULTS, agree, blueprint

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}

# Each case: its settings, the families for which PEFT refuses them: GPT-2, of transformers' Conv1D.
CASES = {
    "default": ({}, (*NO_DEFAULTS, "gpt2")),
    "lora": ({**ALL, "r": 3, "config_D_E": "none"}, ("gpt2",)),
    "vectors": (
        {**ALL, "config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"},
        ("gpt2",),
    ),
    "constants": (
        {**ALL, "config_A_B": "constant", "config_C": "none", "bias": "glora_only"},
        ("gpt2",),
    ),
    "coupling": ({**ALL, "config_A_B": "none", "config_C": "lora"}, ("gpt2",)),
    "unknown-form": ({**ALL, "config_D_E": "lora"}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "GLORA", values) == (family not in refused)


def test_forms_must_be_known():
    config = AdapterConfig("GLORA", config_C="constant")
    with pytest.raises(ModelError, match="config_C is 'constant'; set it to one of lora, vector"):
        peft_change(blueprint("llama"), config)


def test_zeros_that_stand_for_no_path_are_named_as_left_out_of_the_total():
    """PEFT has 2·48 zeros for A and B of a layer of 8 to 6, and 20 for C, D and E."""
    layer = torch.nn.ModuleDict({"proj": torch.nn.Linear(8, 6)})
    values = {"config_A_B": "none", "config_C": "none", "config_D_E": "none"}
    values["target_modules"] = ["proj"]
    live = peft.get_peft_model(copy.deepcopy(layer), peft.GloraConfig(**values))
    assert sum(buffer.numel() for buffer in live.buffers()) == 2 * 48 + 20
    (note,) = peft_change(blueprint_of(layer), AdapterConfig("GLORA", **values)).notes
    assert "leaves out the zeros that stand for A and B: 96 frozen numbers" in note
