"""Losses of single answers, good or bad."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
import torch
from libraries import LIBRARIES, same

from tunemath.errors import MaskError, ShapeError
from tunemath.objective.preference import (
    apo_zero_loss,
    apo_zero_unpaired_loss,
    bco_loss,
    bco_pair_loss,
    bco_shift,
    kto_loss,
    kto_reference_point,
)

RNG = np.random.default_rng(0)
POLICY, REFERENCE = RNG.normal(size=(2, 7)) * 6 - 30
GOOD = np.array([1, 0, 0, 1, 1, 0, 1], dtype=bool)
WEIGHT = RNG.uniform(0.2, 3, size=7)
U = POLICY - REFERENCE


def s(x):
    return 1 / (1 + math.exp(-x))


# The call under test; the plain value of an answer with log-ratio u, label d and weight w.
CASES = {
    "kto": (
        lambda p, r, d, w: kto_loss(
            p, r, d, 1.5, 0.2, desirable_weight=1.3, undesirable_weight=0.8
        ),
        lambda u, d, w: 1.3 - 1.3 * s(0.2 * (u - 1.5)) if d else 0.8 - 0.8 * s(0.2 * (1.5 - u)),
    ),
    "apo_zero_unpaired": (
        lambda p, r, d, w: apo_zero_unpaired_loss(
            p, r, d, 0.2, desirable_weight=1.3, undesirable_weight=0.8
        ),
        lambda u, d, w: 1.3 * (1 - s(0.2 * u)) if d else 0.8 * s(0.2 * u),
    ),
    "bco": (
        lambda p, r, d, w: bco_loss(p, r, d, 0.7, 0.2),
        lambda u, d, w: -math.log(s(0.2 * u - 0.7) if d else s(0.7 - 0.2 * u)),
    ),
    "bco, weighted": (
        lambda p, r, d, w: bco_loss(p, r, d, 0.7, 0.2, importance=w),
        lambda u, d, w: -w * math.log(s(0.2 * u - 0.7) if d else s(0.7 - 0.2 * u)),
    ),
}


@pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)
@pytest.mark.parametrize("case", CASES)
def test_every_library_gives_the_plain_loop(case, make):
    loss, plain = CASES[case]
    expected = [plain(*row) for row in zip(U, GOOD, WEIGHT, strict=True)]
    got = loss(*map(make, (POLICY, REFERENCE, GOOD, WEIGHT)))
    np.testing.assert_allclose(same(got), expected, rtol=1e-11)
    got = loss(*map(make, (POLICY, REFERENCE, GOOD.astype(int), WEIGHT)))
    np.testing.assert_allclose(same(got), expected, rtol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_gradients_in_torch_and_jax(case):
    loss = CASES[case][0]
    good, weight = torch.tensor(GOOD), torch.tensor(WEIGHT)
    leaves = [torch.tensor(row, requires_grad=True) for row in (POLICY, REFERENCE)]
    assert torch.autograd.gradcheck(lambda p, r: loss(p, r, good, weight), leaves)
    expected = torch.autograd.grad(loss(*leaves, good, weight).sum(), leaves)
    to_jax = LIBRARIES["jax"]
    traced = jax.jit(jax.grad(lambda p, r, d, w: loss(p, r, d, w).sum(), argnums=(0, 1)))
    for got, want in zip(
        traced(*map(to_jax, (POLICY, REFERENCE, GOOD, WEIGHT))), expected, strict=True
    ):
        np.testing.assert_allclose(same(got), want, rtol=1e-9)


@pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)
def test_the_points_they_are_held_against(make):
    policy, reference, good = map(make, (POLICY, REFERENCE, GOOD))
    mean = sum(U) / len(U)
    assert float(kto_reference_point(policy, reference)) == pytest.approx(max(0, mean))
    assert float(kto_reference_point(reference, policy)) == pytest.approx(max(0, -mean))
    above = [0.2 * u for u, d in zip(U, GOOD, strict=True) if d]
    below = [0.2 * u for u, d in zip(U, GOOD, strict=True) if not d]
    midway = (sum(above) / len(above) + sum(below) / len(below)) / 2
    assert float(bco_shift(policy, reference, good, 0.2)) == pytest.approx(midway, rel=1e-12)


def test_no_gradient_flows_through_a_point_or_a_weight():
    policy = torch.tensor(POLICY, requires_grad=True)
    reference, good = torch.tensor(REFERENCE), torch.tensor(GOOD)
    assert not kto_reference_point(policy, reference).requires_grad
    assert not bco_shift(policy, reference, good).requires_grad
    point = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    weight = torch.ones(7, dtype=torch.float64, requires_grad=True)
    loss = kto_loss(policy, reference, good, point).sum()
    loss = loss + bco_loss(policy, reference, good, point, importance=weight).sum()
    loss.backward()
    assert policy.grad is not None
    assert point.grad is None
    assert weight.grad is None
    p, r, d = map(LIBRARIES["jax"], (POLICY, REFERENCE, GOOD))
    slope = jax.grad(lambda p: kto_reference_point(p, r - 10) + bco_shift(p, r, d))(p)
    assert same(slope).tolist() == [0.0] * 7


def test_two_halves_make_a_pair():
    zeros = np.zeros(7)
    c, r = U, U[::-1].copy()
    halves = [
        apo_zero_unpaired_loss(x, zeros, np.full(7, good)) for x, good in ((c, True), (r, False))
    ]
    np.testing.assert_allclose(sum(halves), apo_zero_loss(c, r, zeros, zeros), rtol=1e-12)
    halves = [bco_loss(x, zeros, np.full(7, good), 0.0) for x, good in ((c, True), (r, False))]
    np.testing.assert_allclose(sum(halves), bco_pair_loss(c, r, zeros, zeros), rtol=1e-12)


def test_at_the_reference_point_kto_is_half_its_weight():
    loss = kto_loss([2.0, 2.0], [0.0, 0.0], [1, 0], 2.0, desirable_weight=3.0)
    assert loss.tolist() == pytest.approx([1.5, 0.5])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("far", [-1e6, 1e6])
def test_far_log_ratios_stay_finite(case, far):
    policy = torch.full((2,), far, requires_grad=True)
    loss = CASES[case][0](policy, torch.zeros(2), torch.tensor([True, False]), torch.ones(2))
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    assert policy.grad is not None
    assert torch.isfinite(policy.grad).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: kto_loss([0.0], [0.0], [1], -0.1), ValueError, r"kl is -0\.1; expected a number"),
        (lambda: kto_loss([0.0], [0.0], [1], math.nan), ValueError, "kl is nan; expected"),
        (lambda: kto_loss([0.0], [0.0], [1], [0.1]), ShapeError, r"kl has shape \(1,\); expected"),
        (lambda: kto_loss([0.0], [0.0], [2], 0.1), MaskError, "values other than 0 and 1"),
        (lambda: kto_loss([0.0], [0.0], [1, 0], 0.1), ShapeError, r"desirable \(2,\)"),
        (
            lambda: kto_loss([0.0], [0.0], [1], 0.1, undesirable_weight=0),
            ValueError,
            "undesirable_weight is 0; expected a number above 0",
        ),
        (lambda: kto_loss([0.0], [0.0], [1], 0.1, 0), ValueError, "beta is 0; expected"),
        (lambda: kto_reference_point([], []), MaskError, "there are no mismatched answers"),
        (
            lambda: bco_shift([0.0, 1.0], [0.0, 1.0], [1, 1]),
            MaskError,
            "2 of 2 answers are desirable; expected one or more of each kind",
        ),
        (lambda: bco_loss([0.0], [0.0], [1], [0.0]), ShapeError, r"shift has shape \(1,\)"),
        (
            lambda: bco_loss([0.0], [0.0], [1], 0.0, importance=[-1.0]),
            ValueError,
            "importance holds negative numbers, infinity or NaN",
        ),
        (
            lambda: bco_loss([0.0], [0.0], [1], 0.0, importance=[math.inf]),
            ValueError,
            "importance holds negative numbers, infinity or NaN",
        ),
        (
            lambda: bco_loss([0.0], [0.0], [1], 0.0, importance=[1.0, 1.0]),
            ShapeError,
            r"importance \(2,\), policy \(1,\)",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
