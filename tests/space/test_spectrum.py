from __future__ import annotations

import array_api_strict as strict
import jax
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tunemath.errors import ShapeError
from tunemath.space import (
    effective_rank,
    effective_rank_bounds,
    energy,
    factor_singular_values,
    stable_rank,
)

RNG = np.random.default_rng(0)
LIBRARIES = pytest.mark.parametrize("make", [np.asarray, torch.tensor, strict.asarray])


@LIBRARIES
@pytest.mark.parametrize(("r", "d_in", "d_out"), [(3, 10, 12), (8, 5, 20), (8, 20, 5)])
def test_the_factors_spectrum_is_that_of_the_product(make, r, d_in, d_out):
    a, b = RNG.normal(size=(r, d_in)), RNG.normal(size=(d_out, r))
    expected = np.linalg.svd(-2.0 * b @ a, compute_uv=False)[: min(r, d_in, d_out)]
    got = np.asarray(factor_singular_values(make(a), make(b), -2.0))
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_a_tiny_direction_survives():
    """The core keeps a singular value that the product's own rounding would bury."""
    q = np.linalg.qr(RNG.normal(size=(50, 2)))[0]
    values = factor_singular_values(
        np.diag([1.0, 1e-9]) @ q.T, np.linalg.qr(RNG.normal(size=(40, 2)))[0]
    )
    np.testing.assert_allclose(values, [1.0, 1e-9], rtol=1e-6)


def test_gradcheck():
    a = torch.tensor(RNG.normal(size=(2, 5)), requires_grad=True)
    b = torch.tensor(RNG.normal(size=(4, 2)), requires_grad=True)
    assert torch.autograd.gradcheck(factor_singular_values, (a, b))
    s = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64, requires_grad=True)
    for function in (effective_rank, stable_rank, energy):
        assert torch.autograd.gradcheck(function, (s,))


@LIBRARIES
def test_ranks_by_hand(make):
    values = make(np.array([2.0, 1.0, 1.0, 0.0]))
    entropy = 0.5 * np.log(2) + 2 * 0.25 * np.log(4)
    assert float(effective_rank(values)) == pytest.approx(np.exp(entropy), rel=1e-14)
    assert float(stable_rank(values)) == pytest.approx(6 / 4, rel=1e-14)
    np.testing.assert_allclose(np.asarray(energy(values)), [4 / 6, 5 / 6, 1, 1], rtol=1e-14)


def test_an_update_of_zeros():
    zeros = np.zeros((2, 3))
    assert effective_rank(zeros).tolist() == stable_rank(zeros).tolist() == [0.0, 0.0]
    assert energy(zeros).tolist() == [[0.0] * 3] * 2
    assert factor_singular_values(np.ones((2, 5)), np.zeros((4, 2))).tolist() == [0.0, 0.0]


def test_what_is_no_spectrum():
    with pytest.raises(ValueError, match="negative or NaN"):
        effective_rank([1.0, -1.0])
    with pytest.raises(ShapeError, match="descending"):
        energy([1.0, 2.0])
    with pytest.raises(ShapeError, match="with at least one"):
        stable_rank([])


spectra = hnp.arrays(
    np.float64, st.integers(1, 8), elements=st.floats(0, 1e3, allow_subnormal=False)
).filter(lambda values: values.max() > 1e-100)


@given(spectra, st.floats(1e-150, 1e150))
def test_laws_of_ranks(values, factor):
    values = np.sort(values)[::-1].copy()
    k = np.count_nonzero(values)
    assert 1 - 1e-9 <= effective_rank(values) <= k + 1e-9
    assert 1 - 1e-9 <= stable_rank(values) <= k + 1e-9
    shares = energy(values)
    assert np.all(np.diff(shares) >= 0)
    assert shares[-1] == pytest.approx(1)
    for function in (effective_rank, stable_rank):  # the size of an update doesn't count
        assert function(values * factor) == pytest.approx(function(values), rel=1e-6)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6])
def test_ill_conditioned_factors_keep_their_digits(condition):
    u, v = (np.linalg.qr(RNG.normal(size=(side, 6)))[0] for side in (50, 40))
    b = u * np.geomspace(1.0, 1.0 / condition, 6)
    found = factor_singular_values(v.T, b, scale=2.0)
    np.testing.assert_allclose(found, 2.0 * np.geomspace(1.0, 1.0 / condition, 6), rtol=1e-9)
    single = factor_singular_values(v.T.astype(np.float32), b.astype(np.float32))
    assert single.dtype == np.float32


def test_a_rank_deficient_factor_has_zeros():
    a, b = RNG.normal(size=(4, 30)), np.zeros((20, 4))
    b[:, 0] = 1.0
    values = factor_singular_values(a, b)
    assert values[0] == pytest.approx(np.linalg.norm(a[0]) * np.sqrt(20))
    np.testing.assert_allclose(values[1:], 0.0, atol=1e-12)


def test_jax_without_float64_computes_in_float32_and_says_nothing():
    a, b = RNG.normal(size=(3, 20)), RNG.normal(size=(15, 3))
    expected = np.linalg.svd(b @ a, compute_uv=False)[:3]
    found = factor_singular_values(*(jax.numpy.asarray(x, jax.numpy.float32) for x in (a, b)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@given(spectra.filter(lambda values: len(values) > 1), st.integers(1, 7))
def test_what_the_first_values_say_of_the_effective_rank_holds(values, known):
    values = np.sort(values)[::-1].copy()
    known = min(known, len(values))
    low, high = effective_rank_bounds(values[:known], float((values**2).sum()), len(values))
    true = float(effective_rank(values))
    assert low <= true * (1 + 1e-6)
    assert true <= high * (1 + 1e-6)


def test_the_bounds_of_the_effective_rank_are_met():
    """By hand: three equal values beside two known ones, and eight beside them."""
    low, high = effective_rank_bounds([2.0, 1.0], 8.0, 10)
    assert low == pytest.approx(float(effective_rank([2.0, 1.0, 1.0, 1.0, 1.0])), rel=1e-12)
    even = [2.0, 1.0, *[np.sqrt(3 / 8)] * 8]
    assert high == pytest.approx(float(effective_rank(even)), rel=1e-12)
    assert effective_rank_bounds([1.0, 1.0], 2.0, 2) == (pytest.approx(2.0),) * 2
    assert effective_rank_bounds([0.0], 0.0, 4) == (0.0, 0.0)
    tiny = effective_rank_bounds([1.0, 1e-170], 1.0 + 1e-15, 4)  # its square is zero in float64
    assert tiny == (pytest.approx(1.0),) * 2
    with pytest.raises(ShapeError, match="0 < k ≤ size"):
        effective_rank_bounds([1.0, 1.0], 2.0, 1)
