from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from tunemath.errors import ShapeError
from tunemath.evaluation import (
    Interval,
    bootstrap_ratio,
    mcnemar_exact,
    paired_difference,
    wilson_interval,
)


@given(items=st.integers(1, 400), share=st.floats(0, 1), level=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_scipy(items, share, level):
    correct = round(share * items)
    ours = wilson_interval(correct, items, level)
    theirs = binomtest(correct, items).proportion_ci(level, method="wilson")
    assert ours.estimate == correct / items
    assert ours.low == pytest.approx(theirs.low, abs=1e-12)
    assert ours.high == pytest.approx(theirs.high, abs=1e-12)


# Newcombe 1998, Stat Med 17:857, table I, method 3.
@pytest.mark.parametrize(
    ("correct", "items", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_published(correct, items, low, high):
    interval = wilson_interval(correct, items)
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


@given(wins=st.integers(0, 200), losses=st.integers(0, 200))
def test_mcnemar_equals_scipy(wins, losses):
    p = mcnemar_exact(wins, losses)
    if wins + losses:
        assert p == pytest.approx(binomtest(wins, wins + losses, 0.5).pvalue, rel=1e-9)
    else:
        assert p == 1
    assert p == mcnemar_exact(losses, wins)


def test_mcnemar_of_thousands_is_exact():
    assert mcnemar_exact(3000, 0) == 0.5**2999 == 0.0 or mcnemar_exact(3000, 0) < 1e-300
    assert mcnemar_exact(1000, 0) == 0.5**999


def scores(both, first, second, neither):
    a = [1] * (both + first) + [0] * (second + neither)
    b = [1] * both + [0] * first + [1] * second + [0] * neither
    return a, b


# Published intervals of Newcombe's method 10: Newcombe 1998 (Stat Med 17:2635); Altman et al.,
# Statistics with Confidence, table 6.2; the R package contingencytables (Cavo et al. 2012).
@pytest.mark.parametrize(
    ("table", "low", "high", "digits"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404, 4),
        ((14, 5, 0, 22), 0.011, 0.226, 3),
        ((59, 6, 16, 80), -0.1186, -0.0046, 4),
    ],
)
def test_newcombe_published(table, low, high, digits):
    result = paired_difference(*scores(*table))
    assert (round(result.low, digits), round(result.high, digits)) == (low, high)
    assert (result.wins, result.losses) == table[1:3]
    assert result.difference == (table[1] - table[2]) / sum(table)


def newcombe_loop(a, b):
    """Follow the paper's steps on the items themselves, with SciPy's Wilson limits."""
    n = len(a)
    e = sum(1 for x, y in zip(a, b, strict=True) if x and y)
    f = sum(1 for x, y in zip(a, b, strict=True) if x and not y)
    g = sum(1 for x, y in zip(a, b, strict=True) if y and not x)
    h = n - e - f - g
    limits = [binomtest(k, n).proportion_ci(0.95, method="wilson") for k in (e + f, e + g)]
    p = [(e + f) / n, (e + g) / n]
    product = (e + f) * (g + h) * (e + g) * (f + h)
    phi = 0.0
    if product:
        numerator = e * h - f * g
        if numerator > n / 2:
            numerator -= n / 2
        elif numerator >= 0:
            numerator = 0
        phi = numerator / math.sqrt(product)
    down1, up1 = p[0] - limits[0].low, limits[0].high - p[0]
    down2, up2 = p[1] - limits[1].low, limits[1].high - p[1]
    low = (f - g) / n - math.sqrt(down1**2 - 2 * phi * down1 * up2 + up2**2)
    high = (f - g) / n + math.sqrt(up1**2 - 2 * phi * up1 * down2 + down2**2)
    return max(low, -1), min(high, 1)


@settings(max_examples=200, deadline=None)
@given(table=st.tuples(*[st.integers(0, 60)] * 4).filter(any))
def test_newcombe_equals_the_plain_loop(table):
    a, b = scores(*table)
    result = paired_difference(a, b)
    low, high = newcombe_loop(a, b)
    assert result.low == pytest.approx(low, abs=1e-9)
    assert result.high == pytest.approx(high, abs=1e-9)
    assert -1 <= result.low <= result.difference + 1e-12
    assert result.difference - 1e-12 <= result.high <= 1


@settings(max_examples=50)
@given(table=st.tuples(*[st.integers(0, 60)] * 4).filter(any))
def test_swapping_the_arms_mirrors_the_interval(table):
    a, b = scores(*table)
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert one.low == pytest.approx(-other.high, abs=1e-12)
    assert one.high == pytest.approx(-other.low, abs=1e-12)
    assert one.p == other.p


def test_the_ends_of_an_interval_at_none_and_all():
    assert wilson_interval(0, 1).low == wilson_interval(0, 9).low == 0.0
    assert wilson_interval(1, 1).high == wilson_interval(9, 9).high == 1.0
    assert wilson_interval(1, 9).low > 0.0
    assert wilson_interval(8, 9).high < 1.0
    everything = paired_difference([1] * 4, [0] * 4)
    assert (everything.difference, everything.high, everything.p) == (1.0, 1.0, 0.125)
    assert mcnemar_exact(0, 0) == mcnemar_exact(1, 0) == mcnemar_exact(1, 1) == 1.0
    assert mcnemar_exact(5, 0) == 0.0625  # twice a half to the fifth: five wins are not enough
    assert mcnemar_exact(6, 0) == 0.03125


def test_the_same_answers_differ_by_nothing():
    result = paired_difference([1, 0, 1], [1, 0, 1])
    assert (result.difference, result.p, result.wins, result.losses) == (0.0, 1.0, 0, 0)
    assert result.low < 0 < result.high


def test_newcombe_covers_the_truth():
    generator = np.random.default_rng(1)
    cells, covered = [0.55, 0.25, 0.10, 0.10], 0
    for _ in range(400):
        result = paired_difference(*scores(*generator.multinomial(150, cells).tolist()))
        covered += result.low <= 0.15 <= result.high
    assert 0.92 <= covered / 400 <= 0.98


def bootstrap_loop(sums, weights, resamples, seed):
    generator = np.random.default_rng(seed)
    ratios = []
    for _ in range(resamples):
        picked = generator.integers(0, len(sums), len(sums))
        ratios.append(sum(sums[i] for i in picked) / sum(weights[i] for i in picked))
    return np.quantile(ratios, [0.025, 0.975])


def test_bootstrap_agrees_with_drawing_rows_one_by_one():
    generator = np.random.default_rng(0)
    weights = generator.integers(3, 12, 60).astype(float)
    sums = weights * generator.gamma(2.0, 0.4, 60)
    ours = bootstrap_ratio(sums, weights)
    low, high = bootstrap_loop(sums.tolist(), weights.tolist(), 4000, 5)
    width = high - low
    assert ours.estimate == pytest.approx(math.fsum(sums) / math.fsum(weights))
    assert ours.low == pytest.approx(low, abs=0.06 * width)
    assert ours.high == pytest.approx(high, abs=0.06 * width)


def test_bootstrap_of_equal_weights_has_the_width_of_the_standard_error():
    values = np.random.default_rng(2).normal(1.0, 0.5, 400)
    interval = bootstrap_ratio(values, np.ones(400))
    error = values.std() / math.sqrt(400)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert interval != bootstrap_ratio(values, np.ones(400), seed=1)


def test_bootstrap_is_deterministic_and_free_of_scale():
    sums, weights = [1.0, 2.0, 0.5, 4.0], [2, 3, 1, 2]
    first = bootstrap_ratio(sums, weights, seed=3)
    assert first == bootstrap_ratio(sums, weights, seed=3)
    scaled = bootstrap_ratio([8 * s for s in sums], [4 * w for w in weights], seed=3)
    assert scaled.low == pytest.approx(2 * first.low)
    assert scaled.high == pytest.approx(2 * first.high)


def test_the_ends_are_the_quantiles_of_the_confidence():
    sums, weights = np.arange(20.0), np.ones(20)
    inner, outer = (bootstrap_ratio(sums, weights, confidence=c) for c in (0.5, 0.95))
    assert outer.low < inner.low < inner.estimate == outer.estimate == 9.5
    assert inner.estimate < inner.high < outer.high
    # The mean of 20 draws is nearly normal: quantiles at ± 0.674 and ± 1.96 standard errors.
    error = sums.std() / math.sqrt(20)
    assert inner.high - inner.low == pytest.approx(2 * 0.674 * error, rel=0.05)
    assert outer.high - outer.low == pytest.approx(2 * 1.960 * error, rel=0.05)


def test_bootstrap_of_many_rows_goes_block_by_block():
    interval = bootstrap_ratio(np.full(5000, 3.0), np.full(5000, 2.0), resamples=1000)
    assert interval == Interval(1.5, 1.5, 1.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson_interval(3, 0), "3 correct of 0 items"),
        (lambda: wilson_interval(4, 3), "4 correct of 3 items; give 0 ≤ correct"),
        (lambda: wilson_interval(1, 3, 1.5), "confidence 1.5 must be between 0 and 1"),
        (lambda: wilson_interval(-1, 3), "-1 correct of 3 items"),
        (lambda: wilson_interval(1, 3, 0.0), "confidence 0.0 must be between 0 and 1"),
        (lambda: wilson_interval(1, 3, 1.0), "confidence 1.0 must be between 0 and 1"),
        (lambda: mcnemar_exact(2, -1), "wins and losses are counts; got 2 and -1"),
        (lambda: paired_difference([2], [1]), "must be 0 or 1"),
        (lambda: bootstrap_ratio([[1.0]], [[1.0]]), r"got shapes \(1, 1\)"),  # type: ignore
        (lambda: bootstrap_ratio([1.0], [math.inf]), "sums must be finite"),
        (lambda: bootstrap_ratio([math.inf], [1.0]), "sums must be finite"),
        (lambda: bootstrap_ratio([1.0], [-1.0]), "weights positive"),
        (lambda: mcnemar_exact(-1, 2), "wins and losses are counts; got -1 and 2"),
        (lambda: paired_difference([1], [1, 0]), "same items on both sides; got 1 and 2"),
        (lambda: paired_difference([], []), "got 0 and 0"),
        (lambda: paired_difference([0.5], [1]), "must be 0 or 1"),  # type: ignore[list-item]
        (lambda: bootstrap_ratio([1.0], [1.0, 2.0]), r"got shapes \(1,\) and \(2,\)"),
        (lambda: bootstrap_ratio([], []), r"got shapes \(0,\)"),
        (lambda: bootstrap_ratio([1.0, 1.0], [1.0, 0.0]), "weights positive"),
        (lambda: bootstrap_ratio([math.nan], [1.0]), "sums must be finite"),
    ],
)
def test_what_has_no_meaning_is_refused(call, message):
    with pytest.raises(ShapeError, match=message):
        call()
