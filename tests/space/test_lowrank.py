from __future__ import annotations

import array_api_strict as strict
import jax
import numpy as np
import pytest
import torch

import tolerance
from tunemath.errors import ShapeError
from tunemath.space import low_rank

RNG = np.random.default_rng(0)
LIBRARIES = pytest.mark.parametrize("make", [np.asarray, torch.tensor, strict.asarray])
SPECTRA = {
    "power law": lambda i: i**-0.7,
    "planted rank": lambda i: np.where(i <= 5, 2.0 - 0.1 * i, 0.01),
    "exact rank": lambda i: np.where(i <= 5, 1.0, 0.0),
    "flat": np.ones_like,
    "one outlier": lambda i: np.where(i == 1, 1e4, 1.0),
}


def planted(spectrum: str, seed: int, shape: tuple[int, int] = (120, 90)) -> np.ndarray:
    """Return a float64 matrix whose singular values are known."""
    rng = np.random.default_rng(seed)
    least = min(shape)
    u, v = (np.linalg.qr(rng.normal(size=(side, least)))[0] for side in shape)
    return (u * SPECTRA[spectrum](np.arange(1.0, least + 1))) @ v.T


@LIBRARIES
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_the_error_is_what_eckart_and_young_say(make, shape):
    matrix = RNG.normal(size=shape)
    values = np.linalg.svd(matrix, compute_uv=False)
    for rank in range(1, 5):
        fit = low_rank(make(matrix), rank)
        expected = np.sqrt((values[rank:] ** 2).sum() / (values**2).sum())
        # The decomposition, its product and the difference from M, of M's own norm.
        rounding = 16 * tolerance.decomposition(matrix) / np.linalg.norm(matrix)
        assert fit.relative_error == pytest.approx(expected, abs=rounding)
        assert fit.bound == pytest.approx(expected, abs=10 * rounding)
        np.testing.assert_allclose(np.asarray(fit.singular_values), values[:rank], rtol=1e-12)
        assert tuple(fit.left.shape) == (shape[0], rank)
        assert tuple(fit.right.shape) == (rank, shape[1])
        np.testing.assert_allclose(
            np.asarray(fit.approximation), np.asarray(fit.left) @ np.asarray(fit.right), atol=1e-14
        )
        assert np.linalg.matrix_rank(np.asarray(fit.approximation)) == rank


def test_no_other_matrix_of_that_rank_is_nearer():
    matrix = RNG.normal(size=(5, 5))
    best = np.linalg.norm(matrix - low_rank(matrix, 2).approximation)
    for _ in range(50):
        other = RNG.normal(size=(5, 2)) @ RNG.normal(size=(2, 5))
        assert np.linalg.norm(matrix - other) > best


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_bound_holds_whatever_the_spectrum(spectrum, dtype):
    for seed in range(20):
        shape = ((120, 90), (90, 120))[seed % 2]
        matrix = planted(spectrum, seed, shape).astype(dtype)
        fit = low_rank(matrix, rank=(1, 5, 9)[seed % 3], exact=False, seed=seed)
        exact = matrix.astype(np.float64)
        off = np.linalg.norm(exact - fit.left.astype(np.float64) @ fit.right.astype(np.float64))
        error = off / np.linalg.norm(exact)
        assert error <= fit.bound + 16 * tolerance.eps(np.float64)  # of the line above
        assert fit.bound <= error * 1.001 + 3e-3 * np.sqrt(np.finfo(dtype).eps / 1.2e-7)


@LIBRARIES
def test_the_approximation_is_near_the_best_and_never_better(make):
    matrix = planted("power law", 0)
    values = np.linalg.svd(matrix, compute_uv=False)
    best = np.sqrt((values[4:] ** 2).sum() / (values**2).sum())
    errors = [
        low_rank(make(matrix), 4, exact=False, passes=passes).relative_error
        for passes in (2, 3, 4, 5)
    ]
    assert errors == sorted(errors, reverse=True)
    assert best - 1e-12 <= errors[3] <= best * 1.0001
    assert errors[2] <= best * 1.005


def test_its_factors_are_singular_vectors_and_values_below_the_true_ones():
    matrix = planted("planted rank", 3)
    values = np.linalg.svd(matrix, compute_uv=False)
    fit = low_rank(matrix, 5, exact=False)
    np.testing.assert_allclose(fit.singular_values, values[:5], rtol=1e-9)
    assert (fit.singular_values <= values[:5] * (1 + 1e-12)).all()
    np.testing.assert_allclose(fit.right @ fit.right.T, np.eye(5), atol=1e-12)
    u = fit.left / fit.singular_values
    np.testing.assert_allclose(u.T @ u, np.eye(5), atol=1e-12)


def test_a_seed_gives_the_same_factors_twice():
    matrix = planted("power law", 1)
    one, two = (low_rank(matrix, 3, exact=False, seed=7) for _ in range(2))
    np.testing.assert_array_equal(one.left, two.left)


def test_large_matrices_are_approximated_and_small_ones_exact():
    large = RNG.normal(size=(1100, 1200)).astype(np.float32)
    assert low_rank(large, 2).relative_error > low_rank(large, 2, exact=True).relative_error
    small = planted("power law", 2)
    assert low_rank(small, 2).relative_error == low_rank(small, 2, exact=True).relative_error


def test_a_matrix_of_zeros_is_met_exactly():
    for exact in (True, False):
        fit = low_rank(np.zeros((60, 50)), 1, exact=exact)
        assert (fit.relative_error, fit.bound) == (0.0, 0.0)
        assert not fit.approximation.any()


def test_gradients_flow_through_the_exact_one():
    matrix = torch.tensor(RNG.normal(size=(4, 3)), requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: low_rank(m, 2).approximation, (matrix,))


def test_low_rank_refuses():
    with pytest.raises(ShapeError, match=r"rank 4 for a matrix \(3, 5\); expected at most 3"):
        low_rank(np.ones((3, 5)), 4)
    with pytest.raises(ShapeError, match="expected two axes"):
        low_rank(np.ones(3), 1)
    with pytest.raises(ShapeError, match="passes is 1; expected 2 or more"):
        low_rank(np.ones((3, 3)), 1, passes=1)
    with pytest.raises(ValueError, match="NaN or infinite"):
        low_rank(np.full((3, 3), np.nan), 1)


@pytest.mark.parametrize("exact", [True, False])
def test_jax_without_float64(exact):
    matrix = planted("planted rank", 0)
    fit = low_rank(jax.numpy.asarray(matrix, jax.numpy.float32), 5, exact=exact)
    error = np.linalg.norm(matrix - np.asarray(fit.approximation)) / np.linalg.norm(matrix)
    assert fit.relative_error == pytest.approx(error, rel=1e-3)
    assert error <= fit.bound
