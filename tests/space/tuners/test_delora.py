from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, blueprint

from tunemath.errors import ModelError
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}
RANKS = {"q_proj": 2, "query": 3, "SelfAttention.q": 5}

# Each case: its settings, the families for which PEFT refuses them: GPT-2, of transformers' Conv1D.
CASES = {
    "default": ({}, (*NO_DEFAULTS, "gpt2")),
    "all-linear": ({**ALL, "r": 3, "bias": "delora_only"}, ("gpt2",)),
    "ranks": ({**ALL, "rank_pattern": RANKS, "lambda_pattern": {"q_proj": 3}}, ("gpt2",)),
    "no-rank": ({**ALL, "r": 0}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "DELORA", values) == (family not in refused)


def test_a_rank_pattern_must_give_ranks():
    config = AdapterConfig("DELORA", rank_pattern={"q_proj": 0})
    with pytest.raises(ModelError, match="DELORA: r is 0"):
        peft_change(blueprint("llama"), config)
