"""How far one distribution is from another: KL divergence, from probabilities and from logits.

The direction is in the name and in the order of the arguments: ``kl_divergence(p, q)`` is
KL(p ‖ q), and the movement of a fine-tune is KL(tuned ‖ base).
"""

from __future__ import annotations

import math
from typing import Any

from tunemath.arrays import number, numeric, plain, same_shape
from tunemath.errors import ShapeError

__all__ = ["kl_divergence", "kl_from_logits"]

# Below this, e^u − 1 − u is summed as a series, to 4e-7 in float32 and 1e-16 in float64.
_SERIES_BELOW = 0.25
# Below this, e^u is finite in float32, and so is its sum over any vocabulary.
_FAR = 70.0


def kl_divergence(p: Any, q: Any) -> Any:
    """Return KL(p ‖ q) over the last axis.

    Let p and q be distributions over V outcomes: ``Σ_v p_v log(p_v / q_v)``, where an outcome
    with p = 0 adds nothing, and one with p > 0 and q = 0 makes the sum infinite.

    ``p`` and ``q`` (…, V) probabilities, of one shape. Returns (…) nats; 0 when p = q. In general
    KL(p ‖ q) ≠ KL(q ‖ p).

    Valid when each row is non-negative and sums to one, which is checked (to 1e-5, or four units
    in the last place of the dtype). From logits use `kl_from_logits`: probabilities have already
    lost the digits of a small movement.

    >>> tuned, base = [0.4, 0.4, 0.2], [0.6, 0.3, 0.1]
    >>> round(float(kl_divergence(tuned, base)), 6), round(float(kl_divergence(base, tuned)), 6)
    (0.091516, 0.08766)

    Source: Kullback and Leibler 1951.
    """
    given = (p, q)
    xp, p, q = numeric(p, q)
    _check_shapes(p=p, q=q)
    for name, array, original in zip("pq", (p, q), given, strict=True):
        _check_distribution(xp, name, array, _tolerance(xp, original))
    possible = p > 0
    covered = q > 0
    ratio = xp.log(xp.where(possible, p, 1.0)) - xp.log(xp.where(covered, q, 1.0))
    terms = xp.where(possible, xp.where(covered, p * ratio, math.inf), 0.0)
    return plain(xp.sum(terms, axis=-1))


def kl_from_logits(tuned: Any, base: Any) -> Any:
    """Return KL(softmax tuned ‖ softmax base) over the last axis, without cancellation.

    Let z and z′ be the logits of tuned and base, p = softmax z, d = z′ − z, c = E_p[d] and
    u = d − c. Then log q − log p = d − log E_p[e^d], and as E_p[u] = 0

    ``KL(p ‖ q) = log E_p[e^u] = log(1 + E_p[e^u − 1 − u])``,

    a sum of terms that are never negative, so a movement of 1e-10 nats keeps its digits in
    float32; the difference of two log-probabilities would not. Where e^u would overflow, the
    logarithm of E_p[e^u] is taken by log-sum-exp.

    ``tuned`` and ``base`` (…, V) logits, of one shape. Returns (…) nats, at least 0, and exactly
    0 for equal logits; adding a constant to a row of either changes nothing.

    Valid when logits are finite, or −∞ for tokens that can't occur; a token that only the base
    excludes makes the divergence infinite.

    >>> tuned, base = [0.0, 1e-6], [0.0, 0.0]
    >>> f"{float(kl_from_logits(tuned, base)):.6e}"
    '1.250000e-13'
    """
    xp, z, z_base = numeric(tuned, base)
    _check_shapes(tuned=z, base=z_base)
    if 0 in z.shape:
        return xp.sum(z, axis=-1)
    if min(number(xp.min(z)), number(xp.min(z_base))) == -math.inf:
        return plain(_kl_far(xp, z, z_base))
    weight = xp.exp(z - xp.max(z, axis=-1, keepdims=True))
    total = xp.sum(weight, axis=-1)
    # Logits that are close subtract exactly (Sterbenz), so d comes before any other rounding.
    d = z_base - z
    u = d - xp.sum(weight * d, axis=-1, keepdims=True) / total[..., None]
    if number(xp.max(u)) > _FAR:
        return plain(_kl_far(xp, z, z_base))
    return plain(xp.log1p(xp.sum(weight * _exp_excess(xp, u), axis=-1) / total))


def _exp_excess(xp: Any, u: Any) -> Any:
    """Return φ(u) = e^u − 1 − u, never negative and without cancellation.

    Near zero φ(s) = s² (1/2! + s/3! + s²/4! + …); with s the part of u within ±1/4 and r the
    rest, φ(u) = φ(s) + (e^r − 1)(1 + s + φ(s)) − r.
    """
    last = 6 if xp.finfo(u.dtype).bits < 64 else 12
    s = xp.clip(u, -_SERIES_BELOW, _SERIES_BELOW)
    series = s * (1 / math.factorial(last)) + 1 / math.factorial(last - 1)
    for k in range(last - 2, 1, -1):
        series = series * s + 1 / math.factorial(k)
    near = s * s * series
    rest = u - s
    return near + xp.expm1(rest) * (1.0 + s + near) - rest


def _kl_far(xp: Any, z: Any, z_base: Any) -> Any:
    """Return KL for logits so far apart that e^u would overflow, or of which some are −∞.

    The rows with no weight p·e^u above e are summed as log(1 + E_p[e^u − 1 − u]); the others
    as log E_p[e^u] by log-sum-exp.
    """
    peak = xp.max(z, axis=-1, keepdims=True)
    p = xp.exp(z - peak)
    total = xp.sum(p, axis=-1, keepdims=True)
    p = p / total
    excluded = (p > 0) & (z_base == -math.inf)
    # An infinite logit is replaced before it is subtracted: its NaN would reach the gradient.
    both = (p > 0) & (z_base != -math.inf)
    d = xp.where(both, z_base, 0.0) - xp.where(both, z, 0.0)
    c = xp.sum(p * d, axis=-1, keepdims=True)
    log_weight = z_base - c - peak - xp.log(total)
    highest = xp.max(log_weight, axis=-1, keepdims=True)
    far = highest > 1.0
    weight = xp.exp(log_weight - xp.where(far, highest, 0.0))
    u = xp.where(both & ~far & (d - c < _FAR), d - c, 0.0)
    summed = xp.where(both & (u == d - c), p * _exp_excess(xp, u), weight - p * (1.0 + d - c))
    near = xp.log1p(xp.sum(xp.where(far, 0.0, summed), axis=-1))
    distant = xp.log(xp.sum(weight, axis=-1)) + xp.where(far, highest, 0.0)[..., 0]
    kl = xp.where(far[..., 0], distant, near)
    return xp.where(xp.any(excluded, axis=-1), math.inf, kl)


def _check_shapes(**arrays: Any) -> None:
    same_shape(**arrays)
    name, array = next(iter(arrays.items()))
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ShapeError(
            f"{name} has shape {tuple(array.shape)}; expected (…, V), the last axis over outcomes"
        )


def _check_distribution(xp: Any, name: str, values: Any, tolerance: float) -> None:
    if 0 in values.shape:
        return
    least = number(xp.min(values))
    if not least >= 0:
        raise ValueError(
            f"{name} holds {least:g}; expected probabilities of 0 or more "
            "(for logits use kl_from_logits)"
        )
    total = xp.sum(values, axis=-1)
    off = number(xp.max(xp.abs(total - 1.0)))
    if not off <= tolerance:
        raise ValueError(
            f"a row of {name} sums to 1 only within {off:.3g}; expected {tolerance:.3g}. Divide "
            "by the sum (for logits use kl_from_logits)"
        )


def _tolerance(xp: Any, values: Any) -> float:
    """Return how far a row's sum may be from one: 1e-5, or the rounding of a 16-bit dtype."""
    dtype = getattr(values, "dtype", None)
    if dtype is None or not xp.isdtype(dtype, "real floating"):
        return 1e-5
    return max(1e-5, 4 * float(xp.finfo(dtype).eps))
