from __future__ import annotations

import math

import array_api_strict as strict
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunemath.errors import ShapeError
from tunemath.objective import dpo_loss, dpo_margin

LOGPS = np.random.default_rng(0).normal(size=(4, 6)) * 20 - 40


def naive(pc, pr, rc, rr, beta):
    return [
        math.log1p(math.exp(-beta * ((a - b) - (c - d))))
        for a, b, c, d in zip(pc, pr, rc, rr, strict=True)
    ]


@pytest.mark.parametrize("make", [list, np.asarray, torch.tensor, strict.asarray])
def test_every_library_gives_the_naive_loop(make):
    got = dpo_loss(*(make(row) for row in LOGPS), beta=0.2)
    np.testing.assert_allclose(np.asarray(got), naive(*LOGPS, beta=0.2), rtol=1e-11)


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


def test_gradcheck():
    rows = [torch.tensor(row / 10, requires_grad=True) for row in LOGPS]
    assert torch.autograd.gradcheck(lambda *r: dpo_loss(*r, beta=0.5), rows)


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


numbers = st.floats(-1000, 1000)


@given(numbers, numbers, numbers, numbers)
def test_swapping_the_answers_negates_the_margin(a, b, c, d):
    assert dpo_margin(a, b, c, d) == -dpo_margin(b, a, d, c)


@given(numbers, numbers, numbers, numbers)
def test_the_two_losses_differ_by_the_margin(a, b, c, d):
    difference = dpo_loss(b, a, d, c, beta=0.1) - dpo_loss(a, b, c, d, beta=0.1)
    assert difference == pytest.approx(0.1 * dpo_margin(a, b, c, d), abs=1e-10)


def test_bad_input():
    with pytest.raises(ShapeError, match=r"policy_chosen \(2,\), policy_rejected \(3,\)"):
        dpo_loss(np.zeros(2), np.zeros(3), np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match="beta is 0"):
        dpo_loss(0.0, 0.0, 0.0, 0.0, beta=0)
