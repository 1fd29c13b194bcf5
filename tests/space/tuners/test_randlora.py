from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, blueprint

from tunemath.space.peft import AdapterConfig, peft_change

# Each case: its settings, the families for which PEFT refuses them.
CASES = {
    "default": ({}, NO_DEFAULTS),
    "all-linear": ({"target_modules": "all-linear", "r": 5}, ()),
    "rank-over-the-width": ({"target_modules": "all-linear", "r": 40, "sparse": True}, ()),
    "bias": ({"target_modules": "all-linear", "bias": "randlora_only", "very_sparse": True}, ()),
    "no-rank": ({"target_modules": "all-linear", "r": 0}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "RANDLORA", values) == (family not in refused)


def test_a_larger_rank_trains_fewer_parameters():
    trainable = [
        sum(g.trainable for g in peft_change(blueprint("llama"), config).groups)
        for config in (AdapterConfig("RANDLORA", r=r) for r in (2, 4, 8))
    ]
    # Layers of 32 to 32 and 32 to 16: n (r + d) = 16·34 + 8·18, 8·36 + 4·20, 4·40 + 2·24.
    assert trainable == [688, 368, 208]
