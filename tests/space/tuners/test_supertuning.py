from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, blueprint

from tunemath.errors import ModelError
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}

# Each case: its settings, the families for which PEFT refuses them: GPT-2, of transformers' Conv1D.
CASES = {
    "default": ({}, (*NO_DEFAULTS, "gpt2")),
    "half": ({**ALL, "sparsity": 0.53, "select_top": False}, ("gpt2",)),
    "supra": ({**ALL, "sparsity": 0.9, "r": 3}, ("gpt2",)),
    "everything": ({**ALL, "sparsity": 0.0, "init_weights": False}, ("gpt2",)),
    "too-sparse": ({**ALL, "sparsity": 0.9999}, FAMILIES),
    "sparsity": ({**ALL, "sparsity": 1.0}, FAMILIES),
    "alpha-alone": ({**ALL, "lora_alpha": 8}, FAMILIES),
    "no-rank": ({**ALL, "r": 0}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "SUPERTUNING", values) == (family not in refused)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sparsity": 0.9999}, "leaves nothing to train of the 1024 weights of .*q_proj; lower it"),
        ({"sparsity": -0.5}, "sparsity is -0.5"),
        ({"lora_alpha": 8}, "lora_alpha is 8 and r is None; set r"),
    ],
)
def test_refusals_say_why(values, message):
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint("llama"), AdapterConfig("SUPERTUNING", **values))
