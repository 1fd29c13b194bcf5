from __future__ import annotations

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunemath.errors import ShapeError
from tunemath.space import (
    adapter_parameter_count,
    lora_parameter_count,
    prefix_parameter_count,
)

sizes = st.integers(1, 40)


@given(sizes, sizes, sizes)
def test_lora_is_the_size_of_its_two_factors(d_in, d_out, rank):
    a, b = torch.empty(rank, d_in), torch.empty(d_out, rank)
    assert lora_parameter_count(d_in, d_out, rank) == a.numel() + b.numel()


@given(sizes, sizes, st.booleans())
def test_adapter_is_the_size_of_two_linear_layers(d, m, bias):
    layers = torch.nn.Linear(d, m, bias=bias), torch.nn.Linear(m, d, bias=bias)
    expected = sum(p.numel() for layer in layers for p in layer.parameters())
    assert adapter_parameter_count(d, m, bias) == expected


def test_prefix_is_the_size_of_pefts_embedding():
    config = peft.PrefixTuningConfig(
        num_virtual_tokens=16, num_layers=3, token_dim=4 * 8, num_attention_heads=4,
        num_transformer_submodules=1,
    )  # fmt: skip
    expected = sum(p.numel() for p in peft.PrefixEncoder(config).parameters())
    assert prefix_parameter_count(3, 16, 4, 8) == expected


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "8", None])
def test_sizes_are_integers_of_one_or_more(wrong):
    with pytest.raises(ShapeError, match=r"rank is .*expected an integer of 1 or more"):
        lora_parameter_count(8, 8, wrong)
    with pytest.raises(ShapeError, match="bottleneck is"):
        adapter_parameter_count(8, wrong)
    with pytest.raises(ShapeError, match="kv_heads is"):
        prefix_parameter_count(1, 1, wrong, 1)
