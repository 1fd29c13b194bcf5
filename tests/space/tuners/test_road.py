from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, blueprint

from tunemath.errors import ModelError
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}
# GPT-2 has transformers' Conv1D; the classifier of ViT has 3 outputs.
REFUSED = ("gpt2", "vit")

# Each case: its settings, the families for which PEFT refuses them.
CASES = {
    "default": ({}, FAMILIES),  # tiny models are narrower than a group of 64
    "small-groups": ({"group_size": 16}, (*NO_DEFAULTS, "gpt2")),
    "all-linear": ({**ALL, "group_size": 8}, REFUSED),
    "four": ({**ALL, "group_size": 2, "variant": "road_2"}, REFUSED),
    "eight": ({**ALL, "group_size": 4, "variant": "road_4"}, REFUSED),
    "indivisible": ({**ALL, "group_size": 10}, FAMILIES),
    "odd": ({**ALL, "group_size": 1}, FAMILIES),
    "no-group": ({**ALL, "group_size": 0}, FAMILIES),
    "unknown": ({**ALL, "group_size": 2, "variant": "road_3"}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "ROAD", values) == (family not in refused)


@pytest.mark.parametrize(("variant", "size"), [("road_1", 1), ("road_2", 2), ("road_4", 4)])
def test_the_variants_cost_once_twice_and_four_times_the_outputs(variant, size):
    """Hand arithmetic: a pair of outputs has v angles and v scales."""
    config = AdapterConfig("ROAD", target_modules=["up_proj"], group_size=2, variant=variant)
    (group,) = peft_change(blueprint("llama"), config).groups
    assert group.trainable == size * 48


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "group_size 64, and .*q_proj gives 32; set group_size to an even divisor"),
        ({"group_size": 3}, "group_size 3; set it to an even number"),
        ({"variant": "road_3"}, "variant is 'road_3'; set it to one of road_1, road_2, road_4"),
    ],
)
def test_groups_are_of_pairs_and_divide_the_outputs(values, message):
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint("llama"), AdapterConfig("ROAD", **values))
