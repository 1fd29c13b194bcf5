from __future__ import annotations

import array_api_strict as strict
import jax
import numpy as np
import pytest
import torch

from tunemath.errors import ShapeError
from tunemath.space import intruder_dimensions

RNG = np.random.default_rng(0)
LIBRARIES = pytest.mark.parametrize("make", [np.asarray, torch.tensor, strict.asarray])
SHAPES = [(60, 90), (90, 60), (80, 80)]


def largest_cosines(base: np.ndarray, tuned: np.ndarray, k: int) -> list[float]:
    """Algorithm 1 of the paper as a plain loop."""
    before, after = (np.linalg.svd(w, full_matrices=False)[0] for w in (base, tuned))
    return [max(abs(float(after[:, j] @ x)) for x in before.T) for j in range(k)]


def decaying(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    least = min(shape)
    u, v = (np.linalg.qr(rng.normal(size=(side, least)))[0] for side in shape)
    return (u * np.arange(1.0, least + 1) ** -0.3) @ v.T


def tuned_from(base: np.ndarray, rank: int, size: float, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows, columns = base.shape
    update = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
    return base + size * update / np.linalg.norm(update, 2)


@LIBRARIES
@pytest.mark.parametrize("shape", SHAPES)
def test_the_exact_cosines_are_those_of_the_papers_loop(make, shape):
    base = decaying(shape)
    tuned = tuned_from(base, 2, 1.2)
    found = intruder_dimensions(make(base), make(tuned), exact=True)
    expected = largest_cosines(base, tuned, 10)
    np.testing.assert_allclose(found.cosines_lower, expected, rtol=1e-9)
    assert found.cosines_lower == found.cosines_upper
    assert found.lower == found.upper == sum(c < 0.5 for c in expected) > 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rank", "size"), [(1, 0.01), (2, 0.5), (3, 2.0), (40, 0.3), (40, 2.0)])
def test_the_bounds_hold(dtype, shape, rank, size):
    for seed in range(2):
        base = decaying(shape, seed).astype(dtype)
        tuned = tuned_from(base, rank, size, seed + 100).astype(dtype)
        exact = np.array(largest_cosines(base, tuned, 10))
        found = intruder_dimensions(base, tuned, exact=False)
        assert (np.array(found.cosines_upper) >= exact - 1e-3).all()
        # Below, directions of nearly one singular value count as one: here they lie apart.
        assert (np.array(found.cosines_lower) <= exact + 0.02).all()
        assert found.lower <= (exact < 0.5).sum() <= found.upper


@pytest.mark.parametrize("make", [np.asarray, torch.tensor])
def test_planted_intruders_are_proven_without_a_decomposition(make):
    base = decaying((300, 400)).astype(np.float32)
    tuned = tuned_from(base, 3, 3.0).astype(np.float32)
    found = intruder_dimensions(make(base), make(tuned), exact=False)
    assert (found.lower, found.upper) == (3, 3)
    assert max(found.cosines_upper[:3]) < 0.5 < min(found.cosines_lower[3:])


@pytest.mark.parametrize("shape", SHAPES)
def test_scaling_makes_no_intruder_and_the_default_settles_every_vector(shape):
    base = decaying(shape)
    assert intruder_dimensions(base, base).upper == intruder_dimensions(base, -3 * base).upper == 0
    tuned = tuned_from(base, 2, 1.2)
    found = intruder_dimensions(base, tuned)
    count = sum(c < 0.5 for c in largest_cosines(base, tuned, 10))
    assert (found.lower, found.upper) == (count, count)


def test_a_base_of_low_rank_and_jax_without_float64():
    base = decaying((40, 60))[:, :5] @ RNG.normal(size=(5, 60))
    tuned = base + 3 * np.outer(RNG.normal(size=40), RNG.normal(size=60))
    own, first = np.linalg.svd(base)[0][:, :5], np.linalg.svd(tuned)[0][:, 0]
    cosine = float(np.max(np.abs(first @ own)))
    for exact in (False, True):
        found = intruder_dimensions(
            *(jax.numpy.asarray(x, jax.numpy.float32) for x in (base, tuned)), k=1, exact=exact
        )
        assert found.cosines_lower[0] - 1e-3 <= cosine <= found.cosines_upper[0] + 1e-3
        assert found.upper == 1


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ShapeError, match=r"base \(2, 3\) and tuned \(3, 2\); expected one shape"):
        intruder_dimensions(np.ones((2, 3)), np.ones((3, 2)))
    with pytest.raises(ShapeError, match=r"k is 10 for weights \(2, 3\); expected at most 2"):
        intruder_dimensions(np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="epsilon is 2; expected a cosine"):
        intruder_dimensions(np.ones((2, 3)), np.ones((2, 3)), k=1, epsilon=2)
