from __future__ import annotations

import math

import array_api_strict as strict
import numpy as np
import pytest
import torch

from tunemath.errors import MaskError, ShapeError
from tunemath.objective import cross_entropy, sequence_log_prob, token_log_probs

LOGITS = np.random.default_rng(0).normal(size=(2, 3, 5)) * 4
TARGETS = np.array([[0, 4, 2], [1, 1, 3]])


def naive(logits, targets):
    result = np.empty(targets.shape)
    for place in np.ndindex(targets.shape):
        normaliser = math.fsum(math.exp(value) for value in logits[place])
        result[place] = logits[place][targets[place]] - math.log(normaliser)
    return result


@pytest.mark.parametrize("make", [np.asarray, torch.tensor, strict.asarray])
def test_every_library_gives_the_naive_loop(make):
    got = token_log_probs(make(LOGITS), make(TARGETS))
    np.testing.assert_allclose(np.asarray(got), naive(LOGITS, TARGETS), rtol=1e-13)


def test_lists_and_one_position():
    assert token_log_probs([0.0, 0.0], 1) == pytest.approx(-math.log(2))
    assert isinstance(cross_entropy([0.0, 0.0], 1), np.float64)


def test_cross_entropy_and_its_gradient_are_those_of_torch():
    logits = torch.tensor(LOGITS, dtype=torch.float32, requires_grad=True)
    targets = torch.tensor(TARGETS)
    ours = cross_entropy(logits, targets)
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    theirs = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
    )
    (expected,) = torch.autograd.grad(theirs.sum(), logits)
    torch.testing.assert_close(ours.flatten(), theirs)
    torch.testing.assert_close(gradient, expected)


def test_gradcheck():
    logits = torch.tensor(LOGITS, requires_grad=True)
    targets = torch.tensor(TARGETS)
    assert torch.autograd.gradcheck(lambda z: token_log_probs(z, targets), (logits,))
    values = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert torch.autograd.gradcheck(lambda v: sequence_log_prob(v, mask), (values,))


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([1]))
    loss.sum().backward()
    assert loss.item() == 2e4
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0]]


def test_an_impossible_token_has_probability_zero():
    values = token_log_probs([[0.0, -math.inf], [0.0, -math.inf]], [0, 1])
    assert values.tolist() == [0.0, -math.inf]


def test_a_constant_changes_nothing():
    moved = token_log_probs(LOGITS + 123.0, TARGETS)
    np.testing.assert_allclose(moved, token_log_probs(LOGITS, TARGETS), rtol=1e-12)


def test_16_bit_logits_are_computed_in_float32():
    logits = torch.tensor(LOGITS, dtype=torch.float16)
    got = token_log_probs(logits, torch.tensor(TARGETS))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, token_log_probs(logits.float(), torch.tensor(TARGETS)))


def test_no_position_at_all():
    assert token_log_probs(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([[0, -100, 2], [1, 1, 3]], MaskError, "targets contain -100"),
        ([[0, 5, 2], [1, 1, 3]], ShapeError, "target 5 does not fit a vocabulary of 5"),
        ([0, 1, 2], ShapeError, r"targets \(3,\) and logits \(2, 3, 5\)"),
        ([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], ShapeError, "expected integers"),
    ],
)
def test_bad_targets(targets, error, message):
    with pytest.raises(error, match=message):
        token_log_probs(LOGITS, targets)


def test_sequence_log_prob_is_the_loop_over_answer_tokens():
    values = token_log_probs(LOGITS, TARGETS)
    mask = [[0, 1, 1], [1, 0, 0]]
    expected = [values[0, 1] + values[0, 2], values[1, 0]]
    np.testing.assert_allclose(sequence_log_prob(values, mask), expected, rtol=1e-15)


def test_a_row_without_an_answer_raises():
    with pytest.raises(MaskError, match="1 of 2 row"):
        sequence_log_prob(np.zeros((2, 3)), [[0, 0, 0], [0, 1, 0]])
    with pytest.raises(ShapeError, match="shapes differ"):
        sequence_log_prob(np.zeros((2, 3)), [0, 1, 0])
