"""Scores under other divergences: derivatives of their generators, and TRL's own α."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from libraries import LIBRARIES, same

from tunemath.objective.preference import (
    divergence_score,
    dpo_loss,
    dpo_margin,
    pair_loss,
    score_margin,
)

ALPHA = 0.3
# The generators f of Σ ρ f(π/ρ), as the paper lists them.
GENERATORS = {
    "reverse_kl": lambda t: t * t.log(),
    "forward_kl": lambda t: -t.log(),
    "js_divergence": lambda t: t * t.log() - (t + 1) * ((t + 1) / 2).log(),
    "alpha_divergence": lambda t: (
        (t ** (1 - ALPHA) - (1 - ALPHA) * t - ALPHA) / (ALPHA * (ALPHA - 1))
    ),
}
U = np.linspace(-6, 6, 25)


def options(divergence):
    return {"divergence": divergence} | (
        {"alpha": ALPHA} if divergence == "alpha_divergence" else {}
    )


def test_the_generators_are_the_divergences_that_scipy_has():
    p, q = np.array([0.2, 0.5, 0.3]), np.array([0.4, 0.4, 0.2])
    t, rho = torch.tensor(p / q), torch.tensor(q)
    sums = {name: float((rho * f(t)).sum()) for name, f in GENERATORS.items()}
    assert sums["reverse_kl"] == pytest.approx(scipy.stats.entropy(p, q))
    assert sums["forward_kl"] == pytest.approx(scipy.stats.entropy(q, p))
    jensen_shannon = scipy.spatial.distance.jensenshannon(p, q) ** 2
    assert sums["js_divergence"] == pytest.approx(2 * jensen_shannon)


@pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)
@pytest.mark.parametrize("divergence", GENERATORS)
def test_the_score_is_the_generators_derivative(divergence, make):
    t = torch.tensor(np.append(np.exp(U), 1.0), requires_grad=True)
    (slope,) = torch.autograd.grad(GENERATORS[divergence](t).sum(), t)
    got = divergence_score(make(U), **options(divergence))
    np.testing.assert_allclose(same(got), slope[:-1] - slope[-1], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("divergence", GENERATORS)
def test_gradients(divergence):
    u = torch.tensor(U, requires_grad=True)
    score = divergence_score(u, **options(divergence))
    assert torch.autograd.gradcheck(lambda v: divergence_score(v, **options(divergence)), u)
    (expected,) = torch.autograd.grad(score.sum(), u)
    traced = jax.jit(jax.grad(lambda v: divergence_score(v, **options(divergence)).sum()))
    np.testing.assert_allclose(same(traced(LIBRARIES["jax"](U))), expected, rtol=1e-11)


@given(st.floats(-30, 30))
def test_the_ends_of_alpha_and_the_signs(u):
    assert divergence_score(u, "alpha_divergence", alpha=0.0) == u
    forward = divergence_score(u, "forward_kl")
    assert forward == pytest.approx(1 - math.exp(-u), rel=1e-12, abs=1e-15)
    assert divergence_score(u, "alpha_divergence", alpha=1.0) == forward
    near = divergence_score(u, "alpha_divergence", alpha=1e-9)
    assert near == pytest.approx(u, rel=1e-6)
    # Jensen–Shannon is bounded by log 2 above; every score has the sign of the log-ratio.
    assert divergence_score(u, "js_divergence") <= math.log(2)
    for divergence in GENERATORS:
        assert np.sign(divergence_score(u, **options(divergence))) in (0.0, np.sign(u))


def test_where_a_score_overflows():
    assert divergence_score(-1e4, "js_divergence") == pytest.approx(math.log(2) - 1e4)
    with np.errstate(over="ignore"):
        assert divergence_score(-1e4, "forward_kl") == -math.inf
        assert divergence_score([1e4], "forward_kl").tolist() == [1.0]
    chosen, zero = torch.tensor([-1e4, 1e4, 0.0]), torch.zeros(3)
    loss = dpo_loss(chosen, chosen.flip(0), zero, zero, divergence="forward_kl")
    assert loss.tolist() == [math.inf, pytest.approx(math.log(2)), 0.0]
    both = torch.tensor([-1e4])
    assert score_margin(both, both, zero[:1], zero[:1], divergence="forward_kl").isnan()


def test_without_lengths_reverse_kl_is_dpos_margin_and_lengths_divide_each_score():
    rows = np.random.default_rng(0).normal(size=(4, 5)) * 10 - 30
    np.testing.assert_array_equal(score_margin(*rows), dpo_margin(*rows))
    got = score_margin(
        *rows, divergence="js_divergence", chosen_length=[1, 2, 3, 4, 5], rejected_length=[7] * 5
    )
    for i, (a, b, c, d) in enumerate(rows.T):
        js = [math.log(2 / (1 + math.exp(-u))) for u in (a - c, b - d)]
        assert got[i] == pytest.approx(js[0] / (i + 1) - js[1] / 7, rel=1e-11)


@pytest.mark.parametrize(
    "name", ["sigmoid", "hinge", "ipo", "exo_pair", "robust", "discopop", "sigmoid_norm"]
)
@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_a_loss_of_scores_is_the_loss_of_log_ratios_that_equal_them(name, divergence):
    rows = [np.random.default_rng(i).normal(size=6) for i in range(4)]
    lengths = {"chosen_length": [2] * 6, "rejected_length": [5] * 6}
    lengths = lengths if name in ("ipo", "sigmoid_norm") else {}
    got = pair_loss(name, *rows, **options(divergence), **lengths)
    t = [torch.tensor(np.exp(rows[i] - rows[i + 2]), requires_grad=True) for i in range(2)]
    one = torch.ones((), dtype=torch.float64, requires_grad=True)
    (base,) = torch.autograd.grad(GENERATORS[divergence](one), one)
    scores = [
        (torch.autograd.grad(GENERATORS[divergence](x).sum(), x)[0] - base).numpy() for x in t
    ]
    zeros = np.zeros(6)
    np.testing.assert_allclose(
        got, pair_loss(name, *scores, zeros, zeros, **lengths), rtol=1e-10, atol=1e-13
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"divergence": "forward_k"}, "unknown divergence 'forward_k'; did you mean 'forward_kl'?"),
        ({"divergence": "tv"}, "unknown divergence 'tv'; valid: js_divergence, reverse_kl"),
        ({"divergence": "alpha_divergence"}, "alpha_divergence needs alpha"),
        ({"alpha": 0.5}, "alpha has no meaning for reverse_kl; remove it, or write"),
        ({"divergence": "js_divergence", "alpha": 0.5}, "alpha has no meaning for js_divergence"),
        ({"divergence": "alpha_divergence", "alpha": math.inf}, "alpha is inf; expected a finite"),
    ],
)
def test_bad_divergences(given, message):
    for call in (divergence_score, lambda u, **o: dpo_loss(u, u, u, u, **o)):
        with pytest.raises(ValueError, match=message.replace("?", r"\?")):
            call(0.0, **given)


@pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)
def test_the_jensen_shannon_score_keeps_its_digits_near_the_start(make):
    mpmath = pytest.importorskip("mpmath")
    u = np.float32([1e-6, -1e-6, 3e-4, -3e-4, 0.5, -0.5])
    with mpmath.workdps(40):
        exact = [float(mpmath.log(2 / (1 + mpmath.exp(-mpmath.mpf(float(one)))))) for one in u]
    got = same(divergence_score(make(u), "js_divergence"))
    np.testing.assert_allclose(got, exact, rtol=3e-7)


def test_the_jensen_shannon_score_starts_with_slope_one_half():
    u = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(divergence_score(u, "js_divergence").sum(), u)
    assert slope.item() == 0.5
    traced = jax.grad(lambda x: divergence_score(x, "js_divergence"))(jax.numpy.asarray(0.0))
    assert float(traced) == 0.5
