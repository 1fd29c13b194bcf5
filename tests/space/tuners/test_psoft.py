from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from peft_models import FAMILIES, agree, agree_on, base, blueprint

from tunemath.errors import ModelError
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}
NO_CONV1D = ("gpt2",)

# Each case: its settings, the families for which PEFT refuses them.
CASES = {
    "default": ({}, {*FAMILIES} - {"gemma", "t5", "bert"}),
    "linear": ({**ALL, "r": 3}, NO_CONV1D),
    "strict": ({**ALL, "r": 3, "psoft_mag_a": False, "psoft_mag_b": False}, NO_CONV1D),
    "one-scale": ({**ALL, "r": 2, "psoft_mag_a": False, "ab_svd_init": "pissa_init"}, NO_CONV1D),
    "free": ({**ALL, "r": 3, "psoft_orth": False, "psoft_svd": "lowrank"}, NO_CONV1D),
    "free-unscaled": (
        {**ALL, "r": 3, "psoft_orth": False, "psoft_mag_a": False, "psoft_mag_b": False},
        NO_CONV1D,
    ),
    "one": ({**ALL, "r": 1, "use_cayley_neumann": True}, NO_CONV1D),
    "too-large": ({**ALL, "r": 33}, FAMILIES),
    "no-rank": ({**ALL, "r": 0}, FAMILIES),
    "unknown-start": ({**ALL, "r": 3, "ab_svd_init": "random"}, FAMILIES),
    "unknown-svd": ({**ALL, "r": 3, "psoft_svd": "half"}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "PSOFT", values) == (family not in refused)


def test_a_layer_costs_the_same_whatever_its_widths():
    """The paper's formula (arXiv 2505.11235): r (r - 1) / 2 + 2 r."""
    config = AdapterConfig("PSOFT", r=8, target_modules="all-linear")
    groups = peft_change(blueprint("llama"), config).groups
    assert {group.trainable for group in groups} == {8 * 7 // 2 + 16}


def test_the_principal_subspaces_are_named_as_left_out_of_the_total():
    config = AdapterConfig("PSOFT", r=8, target_modules=["v_proj"])
    (note,) = peft_change(blueprint("llama"), config).notes
    assert f"{2 * 8 * (32 + 16):,} frozen numbers" in note


def test_the_rank_is_at_most_the_lesser_width():
    with pytest.raises(ModelError, match="v_proj takes 32 and gives 16; set r to at most 16"):
        peft_change(blueprint("llama"), AdapterConfig("PSOFT"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_must_be_such_as_peft_decomposes(dtype):
    model = copy.deepcopy(base("llama")).to(dtype)
    assert agree_on(model, "PSOFT", {"r": 4}) == (dtype == torch.bfloat16)
    packed = dataclasses.replace(blueprint("llama"), quantisation="bitsandbytes-4bit")
    with pytest.raises(ModelError, match="those of this model are bitsandbytes-4bit"):
        peft_change(packed, AdapterConfig("PSOFT", r=4))
