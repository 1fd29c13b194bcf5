from __future__ import annotations

import math
from functools import partial

import jax
import mpmath
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
import torch
from libraries import LIBRARIES, same

import tolerance
from tunemath.errors import ShapeError
from tunemath.objective.divergence import (
    alpha_divergence,
    js_divergence,
    kl_divergence,
    renyi_divergence,
    skewed_kl,
    total_variation,
)

INF = math.inf


def loop_kl(p, q):
    """KL of two rows without zeros, in any arithmetic (float or mpmath)."""
    return sum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True))


def loop_skewed(p, q, skew):
    return loop_kl(p, [skew * a + (1 - skew) * b for a, b in zip(p, q, strict=True)])


def loop_js(p, q, weight):
    m = [weight * a + (1 - weight) * b for a, b in zip(p, q, strict=True)]
    return weight * loop_kl(p, m) + (1 - weight) * loop_kl(q, m)


def loop_power(p, q, alpha):
    return sum(a**alpha * b ** (1 - alpha) for a, b in zip(p, q, strict=True))


def loop_alpha(p, q, alpha):
    if alpha in (0, 1):
        return loop_kl(p, q) if alpha == 1 else loop_kl(q, p)
    return (loop_power(p, q, alpha) - 1) / (alpha * (alpha - 1))


def loop_renyi(p, q, alpha):
    if alpha == 1:
        return loop_kl(p, q)
    if alpha == INF:
        return max(mpmath.log(a / b) for a, b in zip(p, q, strict=True))
    return mpmath.log(loop_power(p, q, alpha)) / (alpha - 1)


def loop_variation(p, q):
    return sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2


CASES = {
    "kl": (kl_divergence, loop_kl),
    "skewed 0.1": (partial(skewed_kl, skew=0.1), partial(loop_skewed, skew=0.1)),
    "skewed 0.75": (partial(skewed_kl, skew=0.75), partial(loop_skewed, skew=0.75)),
    "js 0.125": (partial(js_divergence, weight=0.125), partial(loop_js, weight=0.125)),
    **{
        f"alpha {a}": (partial(alpha_divergence, alpha=a), partial(loop_alpha, alpha=a))
        for a in (-1, 0, 0.25, 1, 3)
    },
    **{
        f"renyi {a}": (partial(renyi_divergence, alpha=a), partial(loop_renyi, alpha=a))
        for a in (0.25, 1, 3, INF)
    },
    "total variation": (total_variation, loop_variation),
}
every_case = pytest.mark.parametrize(("ours", "loop"), CASES.values(), ids=CASES)
each_form = pytest.mark.parametrize("log", [False, True], ids=["probabilities", "logs"])

P = scipy.special.softmax(np.random.default_rng(0).normal(size=(2, 3, 5)) * 2, axis=-1)
Q = scipy.special.softmax(np.random.default_rng(1).normal(size=(2, 3, 5)) * 2, axis=-1)
P_LOG, Q_LOG = np.log(P), np.log(Q)


def looped(loop):
    """The loop over each of the rows."""
    rows = zip(P.reshape(-1, 5), Q.reshape(-1, 5), strict=True)
    return np.reshape([float(loop(p, q)) for p, q in rows], (2, 3))


@each_form
@pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)
@every_case
def test_every_library_gives_the_naive_loop(ours, loop, make, log):
    p, q = (P_LOG, Q_LOG) if log else (P, Q)
    np.testing.assert_allclose(same(ours(make(p), make(q), log=log)), looped(loop), rtol=1e-12)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (kl_divergence([0.5, 0.5], [0.25, 0.75]), 0.5 * math.log(4 / 3)),
        (skewed_kl([1.0, 0.0], [0.5, 0.5], skew=0.5), math.log(4 / 3)),
        (js_divergence([1.0, 0.0], [0.5, 0.5]), 0.75 * math.log(4 / 3)),
        (js_divergence([1.0, 0.0], [0.0, 1.0], weight=0.25), 2 * math.log(2) - 0.75 * math.log(3)),
        (alpha_divergence([0.5, 0.5], [0.8, 0.2], 0.5), 4 - 4 * math.sqrt(0.9)),
        (alpha_divergence([0.5, 0.5], [0.25, 0.75], 2), 1 / 6),
        (renyi_divergence([0.5, 0.5], [0.25, 0.75], 2), math.log(4 / 3)),
        (renyi_divergence([0.5, 0.5], [0.25, 0.75], INF), math.log(2)),
        (total_variation([0.5, 0.5, 0.0], [0.25, 0.25, 0.5]), 0.5),
    ],
)
def test_rows_computed_by_hand(value, expected):
    assert isinstance(value, np.float64)
    assert value == pytest.approx(expected, rel=1e-14)


def test_scipys_and_torchs_divergences():
    close = partial(np.testing.assert_allclose, rtol=1e-11)
    close(kl_divergence(P, Q), scipy.stats.entropy(P, Q, axis=-1))
    close(kl_divergence(Q, P), scipy.special.rel_entr(Q, P).sum(-1))
    close(js_divergence(P, Q), scipy.spatial.distance.jensenshannon(P, Q, axis=-1) ** 2)
    # Cressie and Read's statistic of n observations is 2n times the divergence.
    for alpha in (-1.0, -0.5, 0.0, 0.5, 1.0, 5 / 3, 2.0):
        statistic, _ = scipy.stats.power_divergence(1000 * P, 1000 * Q, axis=-1, lambda_=alpha - 1)
        close(alpha_divergence(P, Q, alpha), statistic / 2000)
    categorical = [torch.distributions.Categorical(probs=torch.tensor(x)) for x in (P, Q)]
    close(kl_divergence(P, Q), torch.distributions.kl_divergence(*categorical))


@each_form
@pytest.mark.parametrize(
    ("case", "p", "q", "expected"),
    [
        ("kl", [1.0, 0.0], [0.5, 0.5], math.log(2)),
        ("kl", [0.5, 0.5], [1.0, 0.0], INF),
        ("kl", [1.0, 0.0], [1.0, 0.0], 0.0),
        ("skewed 0.1", [0.5, 0.5], [1.0, 0.0], math.log(10 / math.sqrt(19))),
        ("skewed 0.1", [1.0, 0.0], [0.0, 1.0], math.log(10)),
        ("js 0.125", [1.0, 0.0], [0.0, 1.0], math.log(8) - 0.875 * math.log(7)),
        ("js 0.125", [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], 0.0),
        ("alpha -1", [1.0, 0.0], [0.5, 0.5], INF),
        ("alpha -1", [0.5, 0.5], [1.0, 0.0], 0.5),
        ("alpha 0", [1.0, 0.0], [0.5, 0.5], INF),
        ("alpha 0", [0.5, 0.5], [1.0, 0.0], math.log(2)),
        ("alpha 0.25", [1.0, 0.0], [0.0, 1.0], 16 / 3),
        ("alpha 1", [0.5, 0.5], [1.0, 0.0], INF),
        ("alpha 3", [1.0, 0.0], [0.5, 0.5], 0.5),
        ("alpha 3", [0.5, 0.5], [1.0, 0.0], INF),
        ("renyi 0.25", [0.5, 0.5], [1.0, 0.0], math.log(2) / 3),
        ("renyi 0.25", [1.0, 0.0], [0.0, 1.0], INF),
        ("renyi 1", [0.5, 0.5], [1.0, 0.0], INF),
        ("renyi 3", [0.5, 0.5], [1.0, 0.0], INF),
        ("renyi 3", [1.0, 0.0], [0.0, 1.0], INF),
        ("renyi 3", [1.0, 0.0], [0.5, 0.5], math.log(2)),
        ("renyi inf", [0.5, 0.5], [1.0, 0.0], INF),
        ("renyi inf", [1.0, 0.0], [0.5, 0.5], math.log(2)),
        ("total variation", [1.0, 0.0], [0.0, 1.0], 1.0),
        ("total variation", [1.0, 0.0], [1.0, 0.0], 0.0),
    ],
)
def test_impossible_outcomes(case, p, q, expected, log):
    """The value by hand; and where it is finite, so is the gradient."""
    p, q = (torch.tensor(row, dtype=torch.float64) for row in (p, q))
    if log:
        p, q = p.log(), q.log()
    value = CASES[case][0](p.requires_grad_(), q.requires_grad_(), log=log)
    assert value.item() == pytest.approx(expected, rel=1e-15)
    if expected < INF:
        value.backward()
        assert p.grad is not None
        assert q.grad is not None
        assert torch.isfinite(p.grad).all()
        assert torch.isfinite(q.grad).all()


def test_gradient_of_a_skewed_kl_where_the_other_is_zero():
    p = torch.tensor([0.5, 0.5], dtype=torch.float64)
    q = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    skewed_kl(p, q, skew=0.1).backward()
    # d/dq of p log(p/m) − p + m with m = λp + (1 − λ)q is (1 − λ)(1 − p/m).
    assert q.grad is not None
    assert q.grad.tolist() == pytest.approx([0.9 * (1 - 0.5 / 0.95), 0.9 * (1 - 10)])


def test_gradient_of_total_variation_where_both_are_equal():
    p, q = [0.25, 0.25, 0.5], [0.25, 0.5, 0.25]
    leaf = torch.tensor(p, requires_grad=True)
    total_variation(leaf, q).backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [0.0, -0.5, 0.5]
    gradient = jax.grad(total_variation)(LIBRARIES["jax"](np.array(p)), q)
    assert same(gradient).tolist() == [0.0, -0.5, 0.5]


@each_form
@every_case
def test_gradcheck(ours, loop, log):
    form = torch.log_softmax if log else torch.softmax
    z, y = torch.randn(
        2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).unbind(0)

    def through(z, y):
        return ours(form(z, -1), form(y, -1), log=log)

    assert torch.autograd.gradcheck(through, (z.requires_grad_(), y.requires_grad_()))


def exactly(loop, p, q):
    """The textbook formula of the given numbers divided by their sums, in 60 digits."""
    with mpmath.workdps(60):
        p, q = ([mpmath.mpf(float(value)) for value in row] for row in (p, q))
        p, q = ([value / mpmath.fsum(row) for value in row] for row in (p, q))
        return float(loop(p, q))


@every_case
@pytest.mark.parametrize("scale", [1e-7, 1e-4, 1e-2, 1.0, 10.0])
def test_accuracy_at_any_distance(ours, loop, scale):
    rng = np.random.default_rng(3)
    base = rng.normal(size=50) * 3
    p, q = (scipy.special.softmax(z) for z in (base + scale * rng.normal(size=50), base))
    # Rounding the inputs alone moves what is of the first order by 1e-16 / scale.
    close = {"rel": 1e-12 + 1e-14 / scale}
    assert float(ours(p, q)) == pytest.approx(exactly(loop, p, q), **close)
    logs = np.log(p), np.log(q)
    assert float(ours(*logs, log=True)) == pytest.approx(exactly(loop, p, q), **close)


@pytest.mark.parametrize("distance", [1e-12, 1e-6, 1e-3, 0.1])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 20.0])
@pytest.mark.parametrize(
    ("ours", "loop", "limit"),
    [
        (alpha_divergence, loop_alpha, 0),
        (alpha_divergence, loop_alpha, 1),
        (renyi_divergence, loop_renyi, 1),
    ],
)
def test_accuracy_near_the_limits_of_alpha(ours, loop, limit, scale, distance):
    rng = np.random.default_rng(4)
    base = rng.normal(size=20)
    p, q = (scipy.special.softmax(z) for z in (base + scale * rng.normal(size=20), base))
    for alpha in (limit - distance, limit + distance):
        expected = exactly(partial(loop, alpha=mpmath.mpf(alpha)), p, q)
        assert float(ours(p, q, alpha)) == pytest.approx(expected, rel=1e-9)


@each_form
@every_case
def test_float32(ours, loop, log):
    p, q = (P_LOG, Q_LOG) if log else (P, Q)
    got = ours(torch.tensor(p, dtype=torch.float32), torch.tensor(q, dtype=torch.float32), log=log)
    assert got.dtype == torch.float32
    # Each of p, q, their logarithms, the product by α and the exponential is rounded; the
    # exponent α log p/q is up to 20 here, and carries its rounding into the value.
    np.testing.assert_allclose(same(got), same(ours(P, Q)), rtol=2 * tolerance.dot(48, np.float32))


@each_form
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_rows_may_sum_as_their_dtype_allows(dtype, log):
    form = torch.log_softmax if log else torch.softmax
    p = form(torch.linspace(0, 9, 500), -1)
    value = kl_divergence(p.to(dtype), p, log=log)
    assert value.dtype == torch.float32
    assert 0 <= value.item() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_case
def test_extreme_log_probabilities(ours, loop, dtype):
    """Logits of ±1e4: finite where the divergence is, which is where no power overflows."""
    z = torch.tensor([[1e4, -1e4, 0.0], [1e4, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    y = torch.tensor([[-1e4, 1e4, 0.0], [1e4, 0.0, 1e4]], dtype=dtype, requires_grad=True)
    value = ours(torch.log_softmax(z, -1), torch.log_softmax(y, -1), log=True)
    keywords = getattr(ours, "keywords", {})
    if "skew" in keywords:
        skew = keywords["skew"]
        # Rows (1, 0, 0) from (0, 1, 0), and (½, ½, 0) from (½, 0, ½).
        assert value.tolist() == pytest.approx([-math.log(skew), -0.5 * math.log(skew)], rel=1e-6)
    if getattr(ours, "func", None) is alpha_divergence and not 0 <= keywords["alpha"] <= 1:
        assert value.tolist() == [INF, INF]
        return
    gradients = torch.autograd.grad(value.sum(), (z, y))
    assert torch.isfinite(value).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_extreme_values_by_hand():
    p, q = [0.0, -2e4], [-2e4, 0.0]
    assert kl_divergence(p, q, log=True) == pytest.approx(2e4)
    assert renyi_divergence(p, q, 0.5, log=True) == pytest.approx(2e4 - 2 * math.log(2))
    assert renyi_divergence(p, q, 3, log=True) == pytest.approx(2e4)
    assert renyi_divergence(p, q, INF, log=True) == pytest.approx(2e4)
    assert alpha_divergence(p, q, 0.5, log=True) == pytest.approx(4.0)
    assert total_variation(p, q, log=True) == 1.0


@every_case
def test_rows_do_not_disturb_their_neighbours(ours, loop):
    rows_p = np.array([P[0, 0], [1.0, 0, 0, 0, 0], Q[0, 0], P[0, 1], [0.5, 0.5, 0, 0, 0]])
    rows_q = np.array([P[0, 0], [0, 1.0, 0, 0, 0], P[0, 0], [0.2] * 5, [1.0, 0, 0, 0, 0]])
    alone = [float(ours(p, q)) for p, q in zip(rows_p, rows_q, strict=True)]
    assert alone[0] == 0.0
    np.testing.assert_array_equal(ours(rows_p, rows_q), alone)


def test_a_power_beyond_the_largest_number_is_infinite():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1e-30])
    assert alpha_divergence(p, q, 3).item() == INF
    assert alpha_divergence(p.double(), q.double(), 3).item() == pytest.approx(0.125 / 6 * 1e60)


def test_no_row_at_all():
    assert kl_divergence(np.zeros((0, 5)), np.zeros((0, 5))).shape == (0,)


def test_rows_that_sum_to_one_only_roughly_are_off_in_the_second_order():
    """By the textbook sum they would be off by 9e-6, below zero."""
    p, q = P[0, 0] * (1 + 9e-6), P[0, 0]
    assert 0 <= kl_divergence(q, p) < 1e-10
    assert 0 <= kl_divergence(p, q) < 1e-10


@pytest.mark.parametrize(
    ("p", "q", "options", "error", "message"),
    [
        ([0.5, 0.4], [0.5, 0.5], {}, ValueError, "a row of p sums to 1 only within 0.1"),
        ([0.5, 0.5], [1.5, -0.5], {}, ValueError, "q holds -0.5; .* log=True"),
        ([0.5, math.nan], [0.5, 0.5], {}, ValueError, "p holds nan"),
        ([0.5, 0.5], [0.2, 0.3, 0.5], {}, ShapeError, r"p \(2,\), q \(3,\)"),
        (0.5, 0.5, {}, ShapeError, "the last axis over outcomes"),
        ([0.5, 0.5], [0.5, 0.5], {"log": True}, ValueError, "exponential of a row of p sums"),
        ([0.0, math.nan], [0.0, -INF], {"log": True}, ValueError, "row of p sums .* within nan"),
        ([0.0, -INF], [INF, 0.0], {"log": True}, ValueError, "row of q sums .* within inf"),
    ],
)
def test_what_is_no_distribution(p, q, options, error, message):
    for ours, _ in CASES.values():
        with pytest.raises(error, match=message):
            ours(p, q, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(skewed_kl, skew=0.0), "skew is 0.0; expected .*at 0 this is kl_divergence"),
        (partial(skewed_kl, skew=1.5), "skew is 1.5; expected a number from 1e-30 to below 1"),
        (partial(js_divergence, weight=1), "weight is 1; expected a number from 1e-30 to below 1"),
        (partial(js_divergence, weight=math.nan), "weight is nan"),
        (partial(alpha_divergence, alpha=INF), "alpha is inf; expected a finite number"),
        (partial(renyi_divergence, alpha=0), "alpha is 0; expected 1e-30 or more, or math.inf"),
        (partial(renyi_divergence, alpha=math.nan), "alpha is nan"),
    ],
)
def test_options_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call(P, Q)


def test_limits_of_js_and_skewed_kl():
    """As the weight of p vanishes, both tell KL(p ‖ q)."""
    np.testing.assert_allclose(js_divergence(P, Q, weight=1e-9) / 1e-9, looped(loop_kl), rtol=1e-6)
    np.testing.assert_allclose(skewed_kl(P, Q, skew=1e-12), looped(loop_kl), rtol=1e-9)


TINY = {
    "kl": (kl_divergence, lambda r: (math.log(r), 1 - r)),
    # With m = (p + q)/2: ½ log(p/m) by p, and ½ log(q/m) by q, as the divergence is ½ Σ of both.
    "js": (js_divergence, lambda r: (math.log(2 * r / (1 + r)) / 2, math.log(2 / (1 + r)) / 2)),
    # 4 (½ (p + q) − √(p q)).
    "alpha": (partial(alpha_divergence, alpha=0.5), lambda r: (2 - 2 / r**0.5, 2 - 2 * r**0.5)),
    # (p²/q − 2p + q) / 2.
    "pearson": (partial(alpha_divergence, alpha=2), lambda r: (r - 1, (1 - r * r) / 2)),
}


@pytest.mark.parametrize("tiny", [1e-25, 1e-30, 3e-41])
@pytest.mark.parametrize("ratio", [1.25, 0.8, 3.0])
@pytest.mark.parametrize(("ours", "slopes"), TINY.values(), ids=TINY)
def test_float32_gradients_of_tiny_probabilities(ours, slopes, ratio, tiny):
    """The slopes of one outcome's term, p/q = ratio, where p² has underflowed."""
    p = np.array([1.0, ratio * tiny], np.float32)
    q = np.array([1.0, tiny], np.float32)
    leaves = [torch.tensor(row, requires_grad=True) for row in (p, q)]
    found = [torch.autograd.grad(ours(*leaves), leaves)]
    if tiny > 1e-38:  # JAX flushes what is smaller
        found.append(jax.grad(ours, argnums=(0, 1))(*map(jax.numpy.asarray, (p, q))))
    for by_p, by_q in found:
        expected = slopes(float(p[1]) / float(q[1]))
        # A logarithm of that size is rounded, times α, and passes through the exponential. Of
        # numbers below 1e-38 the steps are 2⁻¹⁴⁹: of p, of q, of their sum and its quotient.
        rel = 8 * abs(math.log(tiny)) * tolerance.eps(np.float32)
        slack = 8 * 2.0**-149 / min(float(p[1]), float(q[1])) + rel
        assert [float(by_p[1]), float(by_q[1])] == pytest.approx(expected, rel=rel, abs=slack)


@pytest.mark.parametrize("tiny", [1e-25, 1e-36])
def test_float32_gradients_of_a_skewed_kl_where_the_other_is_zero(tiny):
    """Of p log(p/m) − p + m with m = λp + (1 − λ)q and q = 0: by p, and by q."""
    ours = partial(skewed_kl, skew=0.1)
    p, q = np.array([1.0, tiny], np.float32), np.array([1.0, 0.0], np.float32)
    leaves = [torch.tensor(row, requires_grad=True) for row in (p, q)]
    traced = jax.grad(ours, argnums=(0, 1))(*map(jax.numpy.asarray, (p, q)))
    for by_p, by_q in (torch.autograd.grad(ours(*leaves), leaves), traced):
        assert float(by_p[1]) == pytest.approx(math.log(10) - 0.9, rel=1e-5)
        assert float(by_q[1]) == pytest.approx(0.9 - 0.9 / 0.1, rel=1e-5)
