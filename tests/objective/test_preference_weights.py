"""WPO's weights and LD-DPO's shortened log-probabilities."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
import scipy.special
import torch
from libraries import LIBRARIES, same

from tunemath.errors import MaskError, ShapeError
from tunemath.objective.preference import ld_log_prob, wpo_weights

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 6, 11)) * 2
LOG_PROBS = scipy.special.log_softmax(LOGITS, axis=-1)
CHOSEN = RNG.integers(0, 11, size=(3, 6))
TOKENS = np.take_along_axis(LOG_PROBS, CHOSEN[..., None], axis=-1)[..., 0]
SQUARES = np.log((np.exp(LOG_PROBS) ** 2).sum(-1))
MASK = np.array([[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [1, 1, 0, 1, 1, 1]], dtype=bool)
SHARED = np.array([3, 2, 4])


def plain_ld(alpha):
    sums = []
    for tokens, mask, shared in zip(TOKENS, MASK, SHARED, strict=True):
        selected = [t for t, m in zip(tokens, mask, strict=True) if m]
        sums.append(sum(selected[:shared]) + alpha * sum(selected[shared:]))
    return sums


@pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)
def test_every_library_gives_the_plain_loop(make):
    expected = []
    for p, ids, mask in zip(np.exp(LOG_PROBS), CHOSEN, MASK, strict=True):
        terms = [
            math.log(row[i] / sum(x * x for x in row))
            for row, i, m in zip(p, ids, mask, strict=True)
            if m
        ]
        expected.append(math.exp(sum(terms) / len(terms)))
    got = wpo_weights(make(TOKENS), make(SQUARES), make(MASK))
    np.testing.assert_allclose(same(got), expected, rtol=1e-12)
    for alpha in (0.0, 0.3, 1.0):
        got = ld_log_prob(make(TOKENS), make(MASK), make(SHARED), alpha)
        np.testing.assert_allclose(same(got), plain_ld(alpha), rtol=1e-12)


def test_what_is_masked_leaves_no_trace():
    noise = np.where(MASK, TOKENS, math.nan)
    np.testing.assert_array_equal(
        wpo_weights(noise, SQUARES, MASK), wpo_weights(TOKENS, SQUARES, MASK)
    )
    leaf = torch.tensor(noise, requires_grad=True)
    loss = ld_log_prob(leaf, torch.tensor(MASK), torch.tensor(SHARED), 0.5)
    np.testing.assert_allclose(loss.detach(), plain_ld(0.5), rtol=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    expected = [[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0.5, 0.5], [1, 1, 0, 1, 1, 0.5]]
    assert gradient.tolist() == expected


def test_weights_are_constants_and_log_probs_are_not():
    leaf = torch.tensor(TOKENS, requires_grad=True)
    mask, shared = torch.tensor(MASK), torch.tensor(SHARED)
    assert not wpo_weights(leaf, torch.tensor(SQUARES), mask).requires_grad
    assert torch.autograd.gradcheck(lambda t: ld_log_prob(t, mask, shared, 0.3), leaf)
    jaxed = [LIBRARIES["jax"](array) for array in (TOKENS, SQUARES, MASK, SHARED)]
    zero = jax.grad(lambda t: wpo_weights(t, jaxed[1], jaxed[2]).sum())(jaxed[0])
    assert not same(zero).any()
    gradient = jax.grad(lambda t: ld_log_prob(t, jaxed[2], jaxed[3], 0.5).sum())(jaxed[0])
    assert same(gradient)[2].tolist() == [1, 1, 0, 1, 1, 0.5]


def test_a_uniform_policy_weighs_every_answer_alike():
    uniform = np.full((1, 4), -math.log(7))
    assert wpo_weights(uniform, uniform, np.ones((1, 4), bool)) == pytest.approx(1)


def test_a_tail_that_does_not_count_may_be_impossible():
    tokens, mask = torch.tensor([[-1.0, -math.inf]], requires_grad=True), torch.ones(1, 2)
    total = ld_log_prob(tokens, mask, [1], 0.0)
    total.sum().backward()
    assert total.tolist() == [-1.0]
    assert tokens.grad is not None
    assert tokens.grad.tolist() == [[1.0, 0.0]]
    assert ld_log_prob(tokens.detach(), mask, [1], 0.5).tolist() == [-math.inf]


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_is_a_share(alpha):
    with pytest.raises(ValueError, match=f"alpha is {alpha}; expected a number from 0 to 1"):
        ld_log_prob(TOKENS, MASK, SHARED, alpha)


def test_bad_input():
    empty = MASK & np.array([[True], [False], [True]])
    with pytest.raises(MaskError, match=r"1 of 3 row\(s\) .* select no token"):
        wpo_weights(TOKENS, SQUARES, empty)
    with pytest.raises(MaskError, match=r"1 of 3 row\(s\) .* select no token"):
        ld_log_prob(TOKENS, empty, SHARED, 0.5)
    with pytest.raises(ShapeError, match=r"log_probs \(3, 6\), log_sum_square_probs \(3, 5\)"):
        wpo_weights(TOKENS, SQUARES[:, :5], MASK)
    with pytest.raises(ShapeError, match=r"shared_length \(2,\), log-probabilities \(3,\)"):
        ld_log_prob(TOKENS, MASK, [1, 2], 0.5)
    with pytest.raises(ValueError, match="shared_length goes from 0 to 3"):
        ld_log_prob(TOKENS, MASK, [0, 1, 3], 0.5)
    with pytest.raises(ShapeError, match="log_probs is one number"):
        ld_log_prob(-1.0, True, 1, 0.5)
