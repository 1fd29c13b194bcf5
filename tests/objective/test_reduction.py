from __future__ import annotations

import array_api_strict as strict
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunemath.errors import MaskError, ShapeError
from tunemath.objective import masked_mean, masked_sum, pooled_mean


def naive_mean(values, mask):
    total, count = 0.0, 0
    for value, selected in zip(values, mask, strict=True):
        if selected:
            total += value
            count += 1
    return total / count


@pytest.mark.parametrize("make", [list, np.array, torch.tensor, strict.asarray])
def test_mean_of_every_library_is_the_naive_loop(make):
    values, mask = [0.1, 0.2, 1.0, 0.8], [False, True, True, False]
    assert float(masked_mean(make(values), make(mask))) == pytest.approx(naive_mean(values, mask))


def test_numpy_and_lists_give_numpy_scalars():
    assert isinstance(masked_mean([1, 2], [1, 1]), np.float64)
    assert isinstance(masked_mean(np.ones(2, np.float32), [1, 1]), np.float32)
    total, weight = masked_sum(np.ones((2, 3)), np.ones((2, 3), bool))
    assert (float(total), int(weight)) == (6.0, 6)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_masked_out_leaves_no_trace(poison):
    values = torch.tensor([1.0, poison, 3.0], requires_grad=True)
    mean = masked_mean(values, torch.tensor([True, False, True]))
    mean.backward()
    assert mean.item() == 2.0
    assert values.grad is not None
    assert values.grad.tolist() == [0.5, 0.0, 0.5]
    assert masked_mean([1.0, poison], [1, 0]) == 1.0


def test_nothing_selected_raises_with_counts():
    with pytest.raises(MaskError, match="0 of 3 values"):
        masked_mean([1.0, 2.0, 3.0], [0, 0, 0])
    with pytest.raises(MaskError, match="0 values selected in 2 parts"):
        pooled_mean([masked_sum([1.0], [0]), masked_sum([2.0], [0])])
    with pytest.raises(MaskError, match="no parts"):
        pooled_mean([])


def test_an_empty_part_of_a_batch_is_allowed():
    total, weight = masked_sum([1.0], [0])
    assert (total, weight) == (0, 0)
    assert pooled_mean([(total, weight), masked_sum([4.0, 2.0], [1, 1])]) == 3.0


def test_mask_must_have_the_shape_of_the_values():
    with pytest.raises(ShapeError, match=r"mask \(3,\) and values \(2, 3\) differ"):
        masked_mean(np.ones((2, 3)), np.ones(3, bool))


def test_labels_are_no_mask():
    with pytest.raises(MaskError, match="labels != -100"):
        masked_mean([1.0, 2.0], [-100, 5])


rows = st.lists(st.tuples(st.floats(-100, 100), st.booleans()), min_size=1, max_size=30).filter(
    lambda pairs: any(selected for _, selected in pairs)
)


@given(rows, st.integers(1, 7))
def test_the_mean_does_not_depend_on_how_the_batch_is_cut(pairs, size):
    values, mask = map(list, zip(*pairs, strict=True))
    parts = [
        masked_sum(values[i : i + size], mask[i : i + size]) for i in range(0, len(values), size)
    ]
    assert pooled_mean(parts) == pytest.approx(masked_mean(values, mask), abs=1e-12)


@given(rows)
def test_masked_is_compressed(pairs):
    kept = [value for value, selected in pairs if selected]
    values, mask = zip(*pairs, strict=True)
    assert masked_mean(list(values), list(mask)) == pytest.approx(np.mean(kept), abs=1e-12)


def test_gradient():
    mask = torch.tensor([[True, False], [True, True]])
    values = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: masked_mean(v, mask), (values,))
