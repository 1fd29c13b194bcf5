"""How sure a score is: intervals of a proportion, of a paired difference and of a pooled ratio.

::

    wilson_interval      one arm's accuracy                     Wilson 1927
    mcnemar_exact        are two arms' accuracies different?     McNemar 1947, exact binomial form
    paired_difference    by how much, and how sure               Newcombe 1998, method 10
    bootstrap_ratio      Σ sums / Σ weights over rows (KL)       Efron 1979, percentile

Two arms answer the same items, so their scores are correlated; only the items on which they
differ say which one is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from tunemath.errors import ShapeError

__all__ = [
    "Difference",
    "Interval",
    "bootstrap_ratio",
    "mcnemar_exact",
    "paired_difference",
    "wilson_interval",
]

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Interval:
    """An estimate and the two ends of its confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The accuracy of a minus the accuracy of b on the same items.

    ``wins`` counts the items that only a has right, ``losses`` those that only b has right;
    ``p`` is the two-sided exact McNemar p-value, ``low`` and ``high`` the interval's ends.
    """

    difference: float
    low: float
    high: float
    p: float
    wins: int
    losses: int


def wilson_interval(correct: int, items: int, confidence: float = 0.95) -> Interval:
    """Return an accuracy with its Wilson score interval.

    Let p = correct / items, n = items, z the normal quantile of (1 + confidence) / 2:
    ``(p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)``.

    Valid when items are independent draws.

    >>> interval = wilson_interval(81, 263)
    >>> round(interval.estimate, 4), round(interval.low, 4), round(interval.high, 4)
    (0.308, 0.2553, 0.3662)

    Source: Wilson 1927; the example is Newcombe 1998 (Stat Med 17:857), table I, method 3.
    """
    if items < 1 or not 0 <= correct <= items:
        raise ShapeError(f"{correct} correct of {items} items; give 0 ≤ correct ≤ items, items ≥ 1")
    p, z = correct / items, _quantile(confidence)
    centre = p + z * z / (2 * items)
    half = z * math.sqrt(p * (1 - p) / items + z * z / (4 * items * items))
    scale = 1 + z * z / items
    low = 0.0 if correct == 0 else (centre - half) / scale
    high = 1.0 if correct == items else (centre + half) / scale
    return Interval(p, low, high)


def mcnemar_exact(wins: int, losses: int) -> float:
    """Return the two-sided exact McNemar p-value.

    Under the null hypothesis each item on which the arms differ is a win with probability ½, so
    with n = wins + losses and X ~ Binomial(n, ½): ``p = min(1, 2 P(X ≤ min(wins, losses)))``.
    With n = 0 there is no evidence and p = 1.

    >>> mcnemar_exact(8, 1)
    0.0390625
    """
    if wins < 0 or losses < 0:
        raise ShapeError(f"wins and losses are counts; got {wins} and {losses}")
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**n)


def paired_difference(
    scores_a: Sequence[int], scores_b: Sequence[int], confidence: float = 0.95
) -> Difference:
    """Return the difference of two accuracies on the same items, with its interval and p-value.

    Let a, b, c, d count the items that both arms, only the first, only the second, and neither
    have right; D = (b − c)/n; δ_low, δ_high the distances of each Wilson limit from its p; and
    φ = C/√((a+b)(c+d)(a+c)(b+d)), where C is ad − bc, brought towards zero by n/2 when positive.
    The limits are ``D − √(δ₁low² − 2φ δ₁low δ₂high + δ₂high²)`` and
    ``D + √(δ₁high² − 2φ δ₁high δ₂low + δ₂low²)``.

    ``scores_a`` and ``scores_b`` are 0 or 1, one an item, in the same order.

    >>> a = [1] * 59 + [1] * 6 + [0] * 16 + [0] * 80
    >>> b = [1] * 59 + [0] * 6 + [1] * 16 + [0] * 80
    >>> result = paired_difference(a, b)
    >>> round(result.difference, 4), round(result.low, 4), round(result.high, 4)
    (-0.0621, -0.1186, -0.0046)

    Source: Newcombe 1998, Stat Med 17:2635, method 10.
    """
    if len(scores_a) != len(scores_b) or not len(scores_a):
        raise ShapeError(
            f"paired scores need the same items on both sides; got {len(scores_a)} "
            f"and {len(scores_b)}"
        )
    if not {*scores_a, *scores_b} <= {0, 1}:
        raise ShapeError("paired scores must be 0 or 1, one an item")
    table = [0, 0, 0, 0]
    for first, second in zip(scores_a, scores_b, strict=True):
        table[2 * (1 - int(first)) + (1 - int(second))] += 1
    both, wins, losses, neither = table
    low, high = _newcombe(both, wins, losses, neither, confidence)
    difference = (wins - losses) / len(scores_a)
    return Difference(difference, low, high, mcnemar_exact(wins, losses), wins, losses)


def _newcombe(a: int, b: int, c: int, d: int, confidence: float) -> tuple[float, float]:
    """Return the limits of Newcombe's method 10 from the four counts."""
    n = a + b + c + d
    first, second = wilson_interval(a + b, n, confidence), wilson_interval(a + c, n, confidence)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    covariance = a * d - b * c
    corrected = max(covariance - n / 2, 0.0) if covariance > 0 else float(covariance)
    phi = corrected / math.sqrt(margins) if margins else 0.0
    difference = (b - c) / n
    down = _add(first.estimate - first.low, second.high - second.estimate, phi)
    up = _add(first.high - first.estimate, second.estimate - second.low, phi)
    return max(difference - down, -1.0), min(difference + up, 1.0)


def _add(x: float, y: float, phi: float) -> float:
    """Return √(x² − 2φxy + y²), the square-and-add step."""
    return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))


def bootstrap_ratio(
    sums: Sequence[float] | np.ndarray,
    weights: Sequence[float] | np.ndarray,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Return a ratio pooled over rows, Σ sums / Σ weights, with its percentile interval.

    Let row i contribute sᵢ (say, KL summed over its positions, nats) and wᵢ (its positions).
    A resample draws n rows with replacement: counts ~ Multinomial(n, 1/n); its ratio is
    ``Σ countᵢ sᵢ / Σ countᵢ wᵢ``. The ends are the (1 ± confidence)/2 quantiles of the resamples.

    ``sums`` and ``weights`` have shape (n,), weights positive. The same seed gives the same ends.

    Valid when rows are independent; positions within a row need not be.

    >>> bootstrap_ratio([2.0, 4.0], [1.0, 2.0])
    Interval(estimate=2.0, low=2.0, high=2.0)
    """
    values, sizes = np.asarray(sums, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or values.shape != sizes.shape or not values.size:
        raise ShapeError(
            f"sums and weights are one number a row; got shapes {values.shape} and {sizes.shape}"
        )
    if not (np.isfinite(values).all() and np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ShapeError("sums must be finite and weights positive and finite, in every row")
    n, generator = values.size, np.random.default_rng(seed)
    ratios = np.empty(resamples)
    block = max(1, _BLOCK // n)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        counts = generator.multinomial(n, np.full(n, 1 / n), size=size)
        ratios[start : start + size] = (counts @ values) / (counts @ sizes)
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(values.sum() / sizes.sum()), float(low), float(high))


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ShapeError(f"confidence {confidence} must be between 0 and 1, as in 0.95")
    return NormalDist().inv_cdf((1 + confidence) / 2)
