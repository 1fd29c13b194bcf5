from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from libraries import LIBRARIES

from tunemath.errors import MaskError, ShapeError
from tunemath.objective import masked_mean, masked_sum, pooled_mean, sequence_sum


def naive_mean(values, mask):
    total, count = 0.0, 0
    for value, selected in zip(values, mask, strict=True):
        if selected:
            total += value
            count += 1
    return total / count


every_library = pytest.mark.parametrize("make", [list, *LIBRARIES.values()])


@every_library
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


@given(rows, st.integers(1, 7), st.integers(0, 99))
def test_nor_does_the_weighted_mean(pairs, size, seed):
    values, mask = map(list, zip(*pairs, strict=True))
    weights = np.random.default_rng(seed).uniform(0.1, 2.0, len(values)).tolist()
    parts = [
        masked_sum(values[i : i + size], mask[i : i + size], weights[i : i + size])
        for i in range(0, len(values), size)
    ]
    assert pooled_mean(parts) == pytest.approx(masked_mean(values, mask, weights), abs=1e-11)
    on = np.array(mask)
    expected = np.average(np.array(values)[on], weights=np.array(weights)[on])
    assert pooled_mean(parts) == pytest.approx(expected, abs=1e-11)


@given(rows)
def test_masked_is_compressed(pairs):
    kept = [value for value, selected in pairs if selected]
    values, mask = zip(*pairs, strict=True)
    assert masked_mean(list(values), list(mask)) == pytest.approx(np.mean(kept), abs=1e-12)


def test_gradient():
    mask = torch.tensor([[True, False], [True, True]])
    values = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: masked_mean(v, mask), (values,))


@every_library
def test_weights_are_the_loop(make):
    values, mask, weights = [0.1, 0.2, 1.0, 0.8], [1, 1, 0, 1], [1.0, 0.5, 9.0, 2.0]
    total, weight = masked_sum(make(values), make(mask), make(weights))
    assert float(total) == pytest.approx(0.1 + 0.1 + 1.6)
    assert float(weight) == pytest.approx(3.5)
    assert float(masked_mean(make(values), make(mask), make(weights))) == pytest.approx(1.8 / 3.5)


@every_library
def test_each_sequence_counts_once(make):
    values, mask = [[1.0, 3.0, 9.0], [5.0, 9.0, 1.0]], [[1, 1, 0], [1, 0, 0]]
    total, weight = sequence_sum(make(values), make(mask))
    assert (float(total), int(weight)) == (2.0 + 5.0, 2)
    total, _ = sequence_sum(make(values), make(mask), make([[3.0, 1.0, 0.0], [2.0, 0.0, 0.0]]))
    assert float(total) == pytest.approx(6.0 / 4 + 5.0)


def test_equal_weights_are_no_weights():
    rng = np.random.default_rng(1)
    values, mask = rng.normal(size=(4, 5)), rng.random((4, 5)) < 0.7
    mask[:, 0] = True
    same = np.full((4, 5), 0.3)
    assert masked_mean(values, mask, same) == pytest.approx(masked_mean(values, mask), rel=1e-14)
    one, other = sequence_sum(values, mask, same), sequence_sum(values, mask)
    assert one[0] == pytest.approx(other[0], rel=1e-14)


def test_sequences_of_one_length_make_both_reductions_equal():
    values = np.random.default_rng(2).normal(size=(3, 4))
    mask = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]])
    assert pooled_mean([sequence_sum(values, mask)]) == pytest.approx(masked_mean(values, mask))


def test_the_mean_of_sequences_does_not_depend_on_how_they_are_dealt():
    values = np.random.default_rng(3).normal(size=(6, 4))
    mask = np.random.default_rng(4).random((6, 4)) < 0.5
    mask[:, 1] = True
    parts = [sequence_sum(values[i : i + 2], mask[i : i + 2]) for i in range(0, 6, 2)]
    assert pooled_mean(parts) == pytest.approx(pooled_mean([sequence_sum(values, mask)]))


def test_weights_outside_the_mask_leave_no_trace():
    nan = float("nan")
    assert masked_mean([1.0, nan, 3.0], [1, 0, 1], [1.0, nan, 1.0]) == 2.0
    assert sequence_sum([[1.0, nan]], [[1, 0]], [[2.0, nan]])[0] == 1.0


def test_bad_weights():
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weights hold negative numbers"):
            masked_mean([1.0, 2.0], [1, 1], [1.0, bad])
    with pytest.raises(MaskError, match="weights above 0 select 0 of 2 values"):
        masked_mean([1.0, 2.0], [1, 1], [0.0, 0.0])
    with pytest.raises(MaskError, match=r"in 1 of 2 sequence\(s\) nothing counts"):
        sequence_sum([[1.0, 2.0], [3.0, 4.0]], [[1, 1], [0, 0]])
    with pytest.raises(ShapeError, match="shapes differ"):
        masked_mean([1.0, 2.0], [1, 1], [1.0])
    with pytest.raises(ShapeError, match="the last axis over tokens"):
        sequence_sum(1.0, True)


def test_jax_traces_masks_and_weights():
    values = jax.numpy.asarray([[1.0, 2.0], [3.0, 5.0]])
    mask = jax.numpy.asarray([[True, False], [True, True]])
    assert float(jax.jit(masked_mean)(values, mask)) == pytest.approx(3.0)
    gradient = jax.jit(jax.grad(lambda v, m, w: masked_mean(v, m, w)))(values, mask, values)
    np.testing.assert_allclose(gradient, np.where(mask, values, 0) / 9.0, rtol=1e-12)
    total, weight = jax.jit(sequence_sum)(values, mask)
    assert (float(total), int(weight)) == (5.0, 2)


def test_weighted_gradients():
    mask = torch.tensor([[True, False], [True, True]])
    weights = torch.tensor([[1.0, 9.0], [0.5, 2.0]], dtype=torch.float64)
    values = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    for function in (masked_mean, lambda v, m, w: sequence_sum(v, m, w)[0]):
        assert torch.autograd.gradcheck(lambda v, f=function: f(v, mask, weights), (values,))


def test_16_bit_parts_are_added_in_float32():
    parts = [(torch.tensor(1.0, dtype=torch.bfloat16), 1)] * 1000
    assert float(pooled_mean(parts)) == 1.0


def test_what_a_sequence_masks_out_leaves_no_trace_in_the_gradient():
    nan = float("nan")
    values = torch.tensor([[1.0, nan], [3.0, 5.0]], requires_grad=True)
    total, _ = sequence_sum(values, [[1, 0], [1, 1]], torch.tensor([[2.0, nan], [1.0, 3.0]]))
    total.backward()
    assert total.item() == 1.0 + (3.0 + 15.0) / 4
    assert values.grad is not None
    assert values.grad.tolist() == [[1.0, 0.0], [0.25, 0.75]]


REDUCED = {
    "sum": lambda v, m: masked_sum(v, m)[0],
    "mean": masked_mean,
    "weighted": lambda v, m: masked_mean(v, m, v * v),
    "sequences": lambda v, m: pooled_mean([sequence_sum(v, m), masked_sum(v, m)]),
}


@pytest.mark.parametrize("name", REDUCED)
def test_jax_without_64_bits(name):
    with jax.enable_x64(False):
        values = jax.numpy.asarray([[1.0, 2.0], [3.0, 5.0]])
        mask = jax.numpy.asarray([[1, 0], [1, 1]])
        value, gradient = jax.jit(jax.value_and_grad(REDUCED[name]))(values, mask)
        assert (value.dtype, gradient.dtype) == (np.float32, np.float32)
    expected = REDUCED[name](np.asarray(values, np.float64), np.asarray(mask))
    assert float(value) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("name", REDUCED)
def test_torch_maps_batches_by_vmap(name):
    values = torch.randn(3, 2, 4, dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True], [False, True, True, False]]).expand(3, 2, 4)
    got = torch.func.vmap(REDUCED[name])(values, mask)
    each = [REDUCED[name](v, m) for v, m in zip(values, mask, strict=True)]
    torch.testing.assert_close(got, torch.stack(each))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*lru_cache:UserWarning")
@pytest.mark.parametrize("name", REDUCED)
def test_torch_compiles_without_a_break(name):
    torch.compiler.reset()
    values, mask = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[1, 0], [1, 1]])
    compiled = torch.compile(REDUCED[name], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(values, mask), REDUCED[name](values, mask))


@pytest.mark.parametrize("reduce", [masked_sum, sequence_sum])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_weighs_nothing_leaves_no_trace(poison, reduce):
    values = torch.tensor([[poison, 1.0, 5.0]], requires_grad=True)
    weights = torch.tensor([[0.0, 2.0, 0.0]], requires_grad=True)
    total, weight = reduce(values, torch.ones(1, 3), weights)
    expected = 2.0 if reduce is masked_sum else 1.0
    assert (total.item(), weight.item()) == (expected, expected)
    by_value, by_weight = torch.autograd.grad(total, (values, weights))
    assert by_value.tolist() == [[0.0, 2.0 if reduce is masked_sum else 1.0, 0.0]]
    # Σ w v by a weight is the value, also where the weight is 0.
    expected = [0.0, 1.0, 5.0] if reduce is masked_sum else [-0.5, 0.0, 2.0]
    assert by_weight.tolist() == [expected]


def test_parts_whose_weights_are_no_number():
    with pytest.raises(MaskError, match="nan values selected in 1 parts"):
        pooled_mean([(1.0, float("nan"))])
