"""The fused objectives at their edges: nothing to do, one token, infinities, half precision."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from fused_calls import (
    BASE_HEAD,
    BASE_HIDDEN,
    HEAD,
    HIDDEN,
    TARGETS,
    D,
    drawn,
    entropy,
    every,
    kl,
    leaves,
    trainable,
)
from fused_cases import Case, Problem, assert_same, distance, losses, recorded, summed
from fused_cases import poisoned as poisoned
from torch.nn.functional import cross_entropy as torch_cross_entropy

from tunemath.objective.fused import (
    Lora,
    head,
    linear_cross_entropy,
    linear_entropy,
    linear_kl,
    linear_token_log_probs,
)
from tunemath.objective.fused import function as fused_function


@pytest.mark.parametrize("trained", [False, True])
def test_a_row_of_weight_zero_is_no_row(trained):
    hidden, weight, targets = leaves(trained=trained, rows=30)
    weights = (torch.arange(30) % 3 == 0).float() * 0.5
    gone = weights == 0
    spoilt = hidden.masked_fill(gone[:, None], math.nan)
    junk = targets.masked_fill(gone, -100)

    def call():
        return linear_cross_entropy(spoilt, weight, junk, weights=weights)

    total, count = call()
    assert count == 5.0
    expected = 0.5 * torch_cross_entropy(hidden[~gone] @ weight.T, targets[~gone], reduction="sum")
    wanted = {"hidden": hidden} | ({"head": weight} if trained else {})
    assert_same(total, expected, wanted, tolerance=1e-5)
    made = recorded(lambda: call()[0], hidden, weight).multiplied
    assert made == (3 if trained else 2) * 10 * D * len(weight)


@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize("trained", [False, True])
def test_smoothing_beside_an_impossible_token_costs_infinity(trained, target):
    hidden = torch.eye(3).requires_grad_()
    weight, bias = torch.eye(3).requires_grad_(trained), torch.tensor([0.0, -math.inf, 0.0])
    ids = torch.full((3,), target)
    z = hidden @ weight.T + bias
    expected = torch_cross_entropy(z, ids, reduction="sum", label_smoothing=0.1)
    got = summed(hidden, weight, ids, bias=bias, label_smoothing=0.1)
    assert got == expected == math.inf
    assert torch.isfinite(torch.autograd.grad(got, hidden)[0]).all()


@pytest.mark.parametrize("direction", ["tuned||base", "base||tuned"])
def test_a_token_that_neither_can_say_under_a_cap(direction):
    problem = Problem(Case(bias=True, base="own", soft_cap=7.0, trained=True))
    gone = torch.arange(len(problem.head)) % 3 == 1
    with torch.no_grad():
        problem.bias[gone] = problem.base_bias[gone] = -math.inf

    def call(kept):
        return linear_kl(
            problem.hidden, problem.base_hidden, problem.head[kept], problem.base_head[kept],
            problem.mask, bias=problem.bias[kept], base_bias=problem.base_bias[kept],
            soft_cap=7.0, direction=direction,
        )  # fmt: skip

    expected = call(~gone)
    assert_same(call(gone | ~gone), expected, problem.leaves, problem.upstream)


@every
@trainable
def test_a_vocabulary_of_one(function, trained):
    hidden, weight, targets = leaves(trained=trained, rows=5, vocab=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for chunk in (None, 1):
            value = function(hidden, weight, targets, chunk=chunk)
            assert not value.any()
            for gradient in torch.autograd.grad(value.sum(), [hidden, weight][: 1 + trained]):
                assert not gradient.any()
            with torch.no_grad():
                assert not function(hidden, weight, targets, chunk=chunk).any()


@every
@trainable
def test_no_rows(function, trained):
    hidden, weight, targets = leaves(trained=trained, rows=0)
    value = function(hidden, weight, targets)
    assert value.shape == (() if function is summed else (0,))
    grads = torch.autograd.grad(value.sum(), [hidden, weight][: 1 + trained])
    assert grads[0].shape == (0, D)
    assert not any(gradient.any() for gradient in grads)


@every
@trainable
def test_what_is_given_is_left_as_it_was(function, trained):
    hidden, weight, targets = leaves(trained=trained, dtype=torch.float64, rows=20, vocab=400)
    low = Lora(drawn(3, D).requires_grad_(trained), drawn(400, 3), 0.5)
    given = [hidden, weight, targets, drawn(400).requires_grad_(trained), low.A, low.B]
    copies = [one.detach().clone() for one in given]
    value = function(hidden, weight, targets, bias=given[3], lora=low, soft_cap=3.0, scale=2.0)
    value.sum().backward()
    assert all(map(torch.equal, given, copies))


@pytest.mark.parametrize("native", [False, True])
def test_logits_of_bfloat16_are_rounded_once(native, monkeypatch):
    monkeypatch.setattr(head, "_multiplies", lambda weight: native)
    hidden, weight = HIDDEN.bfloat16() * 3, HEAD.bfloat16()
    exact = hidden.double() @ weight.double().T
    z = (hidden @ weight.T).double() if native else exact
    # The target's own logit is a sum of D products apart, in float32.
    z.scatter_(1, TARGETS[:, None], exact.gather(1, TARGETS[:, None]))
    expected = z.log_softmax(-1).gather(1, TARGETS[:, None])[:, 0]
    got = linear_token_log_probs(hidden, weight, TARGETS)
    torch.testing.assert_close(got.double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("function", [summed, losses, entropy])
@trainable
def test_gradients_of_float16_stay_in_its_range(function, trained, monkeypatch):
    """Where the target lies 20 nats deep, e^(z − z_y) is beyond float16's 65504."""
    monkeypatch.setattr(head, "_multiplies", lambda weight: True)
    hidden = (HIDDEN[:20] * 4).half().requires_grad_()
    weight = HEAD[:600].half().requires_grad_(trained)
    targets = (hidden @ weight.T).argmin(1)
    wanted = {"hidden": hidden} | ({"head": weight} if trained else {})
    z = hidden.double() @ weight.double().T
    if function is entropy:
        expected = torch.distributions.Categorical(logits=z).entropy()
    else:
        expected = torch_cross_entropy(z, targets, reduction="none")
        assert expected.max() > 20
    got = function(hidden, weight, targets)
    # The upstream gradient of a mean over many tokens is below float16's smallest number.
    up = 1e-6 if function is losses and trained else 1.0
    assert_same(got / up, (expected.sum() if got.ndim == 0 else expected) / up, wanted, up, 3e-2)


def test_the_upstream_gradient_is_not_rounded_to_the_states_dtype():
    hidden = HIDDEN[:40].bfloat16().requires_grad_()
    value = linear_token_log_probs(hidden, HEAD, TARGETS[:40])
    (alone,) = torch.autograd.grad(value.sum(), hidden, retain_graph=True)
    upstream = torch.linspace(0.1, 0.3, 40)
    (got,) = torch.autograd.grad(value, hidden, upstream)
    assert torch.equal(got, (alone.double() * upstream.double()[:, None]).bfloat16())


@pytest.mark.parametrize(
    ("function", "smoothing"), [(summed, {"label_smoothing": 0.1}), (entropy, {}), (kl, {})]
)
def test_the_rows_that_are_kept_are_fewer_under_a_cap(function, smoothing, monkeypatch):
    monkeypatch.setattr(fused_function, "_IN_CACHE", 1 << 14)
    hidden, weight, targets = leaves(trained=function is summed)
    plain, capped = (
        recorded(
            lambda cap=cap: function(
                hidden, weight, targets, chunk=60 * len(weight), soft_cap=cap, **smoothing
            ),
            hidden, weight, BASE_HEAD, BASE_HIDDEN,
        ).peak
        for cap in (None, 30.0)
    )  # fmt: skip
    assert max(plain, capped) <= 2 * 4 * 60 * len(weight)
    assert capped <= 1.25 * plain


def test_an_older_torch_has_no_such_backend(monkeypatch):
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions")
    with pytest.raises(ImportError, match="backend='torch' needs a torch that has linear_cross_"):
        linear_cross_entropy(HIDDEN, HEAD, TARGETS, backend="torch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("trained", [False, True])
def test_a_head_in_several_places_gets_every_part_of_its_gradient(trained, dtype):
    """Tied to the embedding, used by two losses, and under a reference that is its own past."""
    table = HEAD[:500].to(dtype, copy=True).requires_grad_()
    weight = table if trained else table.detach()
    ids, targets = TARGETS[:30] % 500, TARGETS[30:60] % 500
    z = table[ids] @ weight.T
    nll = torch_cross_entropy(z, targets, reduction="sum")
    expected = nll + torch.distributions.Categorical(logits=z).entropy().sum()
    got = summed(table[ids], weight, targets) + linear_entropy(table[ids], weight).sum()
    assert_same(got, expected, {"table": table}, tolerance=1e-5)
    assert distance(linear_kl(table[ids], table[ids], weight, weight).sum(), torch.zeros(())) == 0
