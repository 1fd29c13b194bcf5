from __future__ import annotations

import pytest
from peft_models import FAMILIES, agree, blueprint

from tunemath.errors import ModelError
from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}

# Each case: its settings, the families for which PEFT refuses them.
CASES = {
    "default": ({}, ()),
    "all-linear": ({**ALL, "effective_rank": 5}, ()),
    "fraction": ({**ALL, "effective_rank": 0.8, "init_weights": False}, ()),
    "patterns": (
        {**ALL, "effective_rank": 2, "rank_pattern": {"q": 0.4, "v_proj": 7, "wo|dense": None}},
        (),
    ),
    # 1 is a direction, 1.0 all of them.
    "one": ({**ALL, "effective_rank": 1}, ()),
    "all": ({**ALL, "effective_rank": 1.0}, ()),
    "more-than-all": ({**ALL, "effective_rank": 1000}, ()),
    "none": ({**ALL, "effective_rank": 0}, {*FAMILIES} - {"gpt2"}),
    "almost-none": ({**ALL, "effective_rank": 0.01}, {*FAMILIES} - {"gpt2"}),
    "embeddings": ({"target_modules": r".*\.(embed_tokens|wte|word_embeddings)"}, ("vit",)),
    "blocks": ({"target_modules": ["mlp", "SelfAttention", "self_attn", "attention"]}, ()),
    "nothing": ({"target_modules": ["none"]}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "OSF", values) == (family not in refused)


def test_half_of_the_directions_are_trained():
    """Hand arithmetic: l (d_in + d_out + 1), l half of the lesser width."""
    config = AdapterConfig("OSF", target_modules=["v_proj", "down_proj"])
    groups = peft_change(blueprint("llama"), config).groups
    assert [g.trainable for g in groups] == [8 * (32 + 16 + 1), 16 * (48 + 32 + 1)]


def test_what_is_passed_over_is_named():
    change = peft_change(blueprint("gpt2"), AdapterConfig("OSF"))
    assert Ledger(blueprint("gpt2"), change).trainable == 0
    assert "passes silently over 6 other targets, such as transformer.h.0.attn" in change.notes[1]


def test_the_kept_directions_are_named_as_left_out_of_the_total():
    config = AdapterConfig("OSF", target_modules=["v_proj"])
    (note,) = peft_change(blueprint("llama"), config).notes
    # In each of two layers the start of what is trained, and V (8, 32) of the kept.
    assert f"{2 * (8 * (32 + 16 + 1) + 8 * 32):,} frozen numbers" in note


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"effective_rank": 0}, "effective_rank 0 of the 32 singular directions of .*q_proj, that"),
        ({"effective_rank": "half"}, "effective_rank 'half' for .*; set it to a whole number"),
        ({"rank_pattern": {"(": 1}}, r"'\(' is used as a regular expression, and is not"),
    ],
)
def test_the_rank_must_be_one(values, message):
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint("llama"), AdapterConfig("OSF", **values))
