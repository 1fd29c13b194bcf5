"""KL divergence from logits, where a small movement still has its digits.

The movement of a fine-tune is KL(tuned ‖ base): ``kl_from_logits(tuned, base)``.
"""

from __future__ import annotations

import math
from typing import Any

from tunemath.arrays import known, numeric, plain
from tunemath.objective.divergence import check_outcomes, exp_excess

__all__ = ["check_possible", "kl_from_logits"]

# Below this, e^u is finite in float32, and so is its sum over any vocabulary.
_FAR = 70.0


def kl_from_logits(tuned: Any, base: Any) -> Any:
    """Return KL(softmax tuned ‖ softmax base) over the last axis, without cancellation.

    Let z and z′ be the logits of tuned and base, p = softmax z, d = z′ − z, c = E_p[d] and
    u = d − c. Then log q − log p = d − log E_p[e^d], and as E_p[u] = 0

    ``KL(p ‖ q) = log E_p[e^u] = log(1 + E_p[e^u − 1 − u])``,

    a sum of terms that are never negative, so a movement of 1e-10 nats keeps its digits in
    float32; the difference of two log-probabilities would not. Where e^u would overflow, the
    logarithm of E_p[e^u] is taken by log-sum-exp.

    ``tuned`` and ``base`` (…, V) logits, of one shape; swap them for the other direction. Returns
    (…) nats, at least 0, and exactly 0 for equal logits; adding a constant to a row of either
    changes nothing.

    Valid when logits are finite, or −∞ for tokens that can't occur; a token that only the base
    excludes makes the divergence infinite, and a row of nothing but −∞ raises.

    >>> tuned, base = [0.0, 1e-6], [0.0, 0.0]
    >>> f"{float(kl_from_logits(tuned, base)):.6e}"
    '1.250000e-13'
    """
    xp, z, z_base = numeric(tuned, base)
    check_outcomes(tuned=z, base=z_base)
    if 0 in z.shape:
        return xp.sum(z, axis=-1)
    # A traced condition is unknown: neither True nor False, and the general way is taken.
    if known((xp.min(z) == -math.inf) | (xp.min(z_base) == -math.inf)) is not False:
        check_possible(xp, tuned=z, base=z_base)
        return plain(_kl_any(xp, z, z_base))
    weight = xp.exp(z - xp.max(z, axis=-1, keepdims=True))
    total = xp.sum(weight, axis=-1)
    # Logits that are close subtract exactly (Sterbenz), so d comes before any other rounding.
    d = z_base - z
    u = d - xp.sum(weight * d, axis=-1, keepdims=True) / total[..., None]
    if not known(xp.max(u) <= _FAR):
        return plain(_kl_any(xp, z, z_base))
    return plain(xp.log1p(xp.sum(weight * exp_excess(xp, u), axis=-1) / total))


def _kl_any(xp: Any, z: Any, z_base: Any) -> Any:
    """Return KL for any logits: so far apart that e^u would overflow, −∞, or not known yet.

    The rows with no weight p·e^u above e are summed as log(1 + E_p[e^u − 1 − u]); the others
    as log E_p[e^u] by log-sum-exp, which loses no digits as it is at least 1.
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
    summed = xp.where(both & (u == d - c), p * exp_excess(xp, u), weight - p * (1.0 + d - c))
    infinite = xp.any(excluded, axis=-1, keepdims=True)
    near = xp.log1p(xp.sum(xp.where(far | infinite, 0.0, summed), axis=-1, keepdims=True))
    # The logarithm of a sum that underflowed would make the gradient of an infinite row NaN.
    rest = xp.where(far, xp.sum(weight, axis=-1, keepdims=True), 1.0)
    kl = xp.where(far, xp.log(rest) + xp.where(far, highest, 0.0), near)
    return xp.squeeze(xp.where(infinite, math.inf, kl), axis=-1)


def check_possible(xp: Any, **logits: Any) -> None:
    """Refuse a row of nothing but −∞."""
    for name, z in logits.items():
        impossible = xp.max(z, axis=-1) == -math.inf
        if known(xp.any(impossible)):
            count = int(xp.sum(xp.astype(impossible, xp.int32)))
            raise ValueError(
                f"{count} of {math.prod(impossible.shape)} row(s) of {name} hold nothing but "
                "−inf; at least one outcome must be possible in every row"
            )
