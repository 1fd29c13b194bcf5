"""The margin, what is read off it, and DPO itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from libraries import LIBRARIES, same

from tunemath.errors import ShapeError
from tunemath.objective.preference import (
    dpo_loss,
    dpo_margin,
    gradient_weight,
    implicit_reward,
    preference_accuracy,
)

LOGPS = np.random.default_rng(0).normal(size=(4, 6)) * 20 - 40


@pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)
def test_every_library_gives_the_plain_loop(make):
    pc, pr, rc, rr = (make(row) for row in LOGPS)
    margins = [(a - b) - (c - d) for a, b, c, d in zip(*LOGPS, strict=True)]
    np.testing.assert_allclose(same(dpo_margin(pc, pr, rc, rr)), margins, rtol=1e-12)
    np.testing.assert_allclose(
        same(implicit_reward(pc, rc, 0.3)),
        [0.3 * (a - c) for a, c in zip(LOGPS[0], LOGPS[2], strict=True)],
        rtol=1e-12,
    )
    weights = [0.3 / (1 + math.exp(0.3 * m)) for m in margins]
    np.testing.assert_allclose(same(gradient_weight(make(margins), 0.3)), weights, rtol=1e-12)
    right = [1.0 if m > 0 else 0.0 for m in margins]
    assert same(preference_accuracy(make(margins))).tolist() == right


def test_equals_torchs_logsigmoid_in_value_and_gradient():
    rows = torch.tensor(LOGPS, dtype=torch.float32, requires_grad=True)
    ours = dpo_loss(*rows, beta=0.3)
    a, b, c, d = rows
    theirs = -torch.nn.functional.logsigmoid(0.3 * ((a - b) - (c - d)))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), rows), torch.autograd.grad(theirs.sum(), rows)
    )


def test_step_zero_is_log_two_with_half_the_gradient():
    policy = torch.tensor([-3.0, -5.0], dtype=torch.float64, requires_grad=True)
    loss = dpo_loss(policy[0], policy[1], policy[0].detach(), policy[1].detach(), beta=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), rel=1e-15)
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([-0.05, 0.05], rel=1e-15)


@pytest.mark.parametrize("margin", [-1e6, 1e6])
def test_huge_margins_stay_finite(margin):
    chosen = torch.tensor(margin, requires_grad=True)
    zero = torch.zeros(())
    loss = dpo_loss(chosen, zero, zero, zero, beta=1.0)
    loss.backward()
    assert loss.item() == max(-margin, 0.0)
    assert chosen.grad is not None
    assert chosen.grad.item() == (-1.0 if margin < 0 else 0.0)
    assert dpo_loss(margin, 0.0, 0.0, 0.0, beta=1.0) == max(-margin, 0.0)
    assert gradient_weight(margin, 0.5) == (0.5 if margin < 0 else 0.0)


def test_the_gradient_weight_is_dpos_gradient():
    margin = torch.linspace(-300, 300, 41, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros_like(margin)
    (gradient,) = torch.autograd.grad(dpo_loss(margin, zero, zero, zero, 0.2).sum(), margin)
    torch.testing.assert_close(gradient_weight(margin, 0.2), -gradient)


def test_a_small_weight_keeps_its_digits():
    assert gradient_weight(1000.0, 0.5) == pytest.approx(0.5 * math.exp(-500), rel=1e-12)


def test_a_tie_counts_as_a_coin_and_nan_as_nothing():
    assert preference_accuracy([2.0, 0.0, -0.0, -3.0]).tolist() == [1.0, 0.5, 0.5, 0.0]
    assert preference_accuracy([math.inf, -math.inf]).tolist() == [1.0, 0.0]
    assert math.isnan(preference_accuracy(math.nan))


numbers = st.floats(-1000, 1000)


@given(numbers, numbers, numbers, numbers)
def test_swapping_the_answers_negates_the_margin(a, b, c, d):
    assert dpo_margin(a, b, c, d) == -dpo_margin(b, a, d, c)


@given(numbers, numbers, numbers, numbers)
def test_the_two_losses_differ_by_the_margin(a, b, c, d):
    difference = dpo_loss(b, a, d, c, beta=0.1) - dpo_loss(a, b, c, d, beta=0.1)
    assert difference == pytest.approx(0.1 * dpo_margin(a, b, c, d), abs=1e-10)


@given(numbers, numbers, numbers, numbers)
def test_the_margin_is_the_difference_of_two_rewards(a, b, c, d):
    rewards = implicit_reward(a, c, 0.5) - implicit_reward(b, d, 0.5)
    assert rewards == pytest.approx(0.5 * dpo_margin(a, b, c, d), abs=1e-9)


def test_bad_input():
    with pytest.raises(ShapeError, match=r"policy_chosen \(2,\), policy_rejected \(3,\)"):
        dpo_loss(np.zeros(2), np.zeros(3), np.zeros(2), np.zeros(2))
    with pytest.raises(ShapeError, match=r"policy \(2,\), reference \(3,\)"):
        implicit_reward(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="beta is 0"):
        dpo_loss(0.0, 0.0, 0.0, 0.0, beta=0)
    with pytest.raises(ValueError, match="beta is -1"):
        implicit_reward(0.0, 0.0, -1)
    with pytest.raises(ValueError, match="beta is nan"):
        gradient_weight(0.0, math.nan)
