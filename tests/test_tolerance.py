"""The tests' own bounds, on numbers that rounding has moved in the worst way and by chance."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch

import tolerance


def test_gamma_is_highams():
    assert tolerance.dot(10, torch.float32) == pytest.approx(10 * 2**-24 / (1 - 10 * 2**-24))
    assert tolerance.dot(1, np.float64) == pytest.approx(2**-53)
    assert tolerance.eps(torch.bfloat16) == 2**-7


def test_a_product_is_within_its_bound_in_any_order():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((5, 300), (300, 4)))
    exact, bound = a.double() @ b.double(), tolerance.product(a, b)
    backwards = torch.zeros(5, 4)
    for k in reversed(range(300)):
        backwards += a[:, k : k + 1] * b[k]
    for found in (a @ b, backwards):
        assert ((found.double() - exact).abs() <= bound).all()
    assert (bound < 1e-2).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_is_within_half_a_step_and_reaches_it(dtype):
    values = torch.logspace(-9, 2, 4001, dtype=torch.float64)
    off = (values.to(dtype).double() - values).abs()
    bound = tolerance.rounded(values, dtype)
    assert (off <= bound).all()
    assert (off / bound).max() > 0.95


@pytest.mark.parametrize("rank", [1, 3])
def test_a_cut_moves_by_less_than_its_bound(rank):
    generator = torch.Generator().manual_seed(0)

    def drawn():
        return torch.randn(12, 9, generator=generator, dtype=torch.float64)

    def nearest(matrix):
        u, s, v = torch.linalg.svd(matrix)
        return (u[:, :rank] * s[:rank]) @ v[:rank]

    for _ in range(20):
        matrix, moved = drawn(), 1e-6 * drawn()
        error = float(torch.linalg.matrix_norm(moved, 2))
        bound = tolerance.cut(matrix, rank, error)
        distance = torch.linalg.matrix_norm(nearest(matrix + moved) - nearest(matrix), 2)
        assert distance <= bound
        assert distance > bound / 100  # so it is not idle
    assert tolerance.cut(torch.diag(torch.tensor([2.0, 1.0, 0.0])), 2, 1e-3) == 2e-3
    with pytest.raises(AssertionError, match="the gap is within the rounding"):
        tolerance.cut(torch.eye(3), 1, 1e-9)


def test_singular_values_in_float32_are_within_the_bound():
    matrix = torch.randn(80, 60, generator=torch.Generator().manual_seed(1))
    off = (torch.linalg.svdvals(matrix).double() - torch.linalg.svdvals(matrix.double())).abs()
    assert float(off.max()) <= tolerance.decomposition(matrix)
    assert tolerance.decomposition(matrix) < 1e-4 * float(torch.linalg.matrix_norm(matrix, 2))


@pytest.mark.parametrize("step", [1e-4, 1e-2, 0.3])
def test_a_kl_moves_by_less_than_its_bound(step):
    rng = np.random.default_rng(2)
    with mpmath.workdps(40):
        for _ in range(20):
            base = rng.normal(size=6)
            tuned = base + step * rng.normal(size=6)
            size = 1e-7
            nats = _kl(tuned, base)
            signs = rng.choice([-1.0, 1.0], size=(2, 6))
            moved = _kl(tuned + size * signs[0], base + size * signs[1])
            assert abs(moved - nats) <= 1.1 * tolerance.kl(nats, size)


def _kl(tuned, base) -> float:
    def softmax(z):
        weights = [mpmath.exp(mpmath.mpf(float(x))) for x in z]
        return [w / mpmath.fsum(weights) for w in weights]

    pairs = zip(softmax(tuned), softmax(base), strict=True)
    return float(mpmath.fsum(p * mpmath.log(p / q) for p, q in pairs))


def test_a_networks_bound_grows_with_its_size():
    z = torch.tensor([1.0, -20.0])
    small = tolerance.network(z, layers=2, width=48)
    assert small == pytest.approx(16 * math.sqrt(13 * 48) * 2**-24 * 20)
    assert tolerance.network(z, layers=8, width=48) > 1.9 * small
    assert tolerance.network(z, layers=2, width=48, dtype=torch.float64) < 1e-8 * small
