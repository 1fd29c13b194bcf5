"""How far one distribution is from another, from probabilities or log-probabilities.

The direction is in the order of the arguments: ``kl_divergence(p, q)`` is KL(p ‖ q), where p is
the distribution that the expectation is taken over; KL(q ‖ p) is the same function with the
arguments swapped. From logits, KL is `kl_from_logits`.

Every divergence but total variation is summed in terms that are never negative. For KL they are

``p log(p/q) − p + q = p (e^u − 1 − u), u = log(q/p)``,

the same sum where p and q sum to one, without its cancellation: a distance of 1e-12 nats keeps
its digits, and rows that sum to one only up to rounding are off in the second order alone.

An outcome with p = q = 0 adds nothing. Where p or q is 0 and the divergence is finite, so is its
gradient.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from tunemath.arrays import constant, known, number, numeric, plain, same_shape
from tunemath.errors import ShapeError

__all__ = [
    "alpha_divergence",
    "check_outcomes",
    "exp_excess",
    "js_divergence",
    "kl_divergence",
    "renyi_divergence",
    "skewed_kl",
    "total_variation",
]

# Below this, e^u − 1 − u is summed as a series, to 4e-7 in float32 and 1e-16 in float64.
_SERIES_BELOW = 0.25
# Below this, a share or an order is soon lost in float32.
_SMALLEST = 1e-30


def kl_divergence(p: Any, q: Any, *, log: bool = False) -> Any:
    """Return KL(p ‖ q) over the last axis.

    Let p and q be distributions over V outcomes: ``Σ_v p_v log(p_v / q_v)``, where an outcome
    with p = 0 adds nothing, and one with p > 0 and q = 0 makes the sum infinite.

    ``p`` and ``q`` (…, V) probabilities, of one shape, or with ``log`` log-probabilities (−∞ for
    what can't occur). Returns (…) nats, at least 0; 0 when p = q. In general KL(p ‖ q) ≠
    KL(q ‖ p): swap the arguments for the other direction.

    Valid when each row is non-negative and sums to one, which is checked (to 1e-5, or to the
    rounding of a 16-bit dtype). From logits use `kl_from_logits`: probabilities have already
    lost the digits of a small movement.

    >>> tuned, base = [0.4, 0.4, 0.2], [0.6, 0.3, 0.1]
    >>> round(float(kl_divergence(tuned, base)), 6), round(float(kl_divergence(base, tuned)), 6)
    (0.091516, 0.08766)

    Source: Kullback and Leibler 1951.
    """
    xp, pair = _pair(p, q, log)
    return plain(_kl(xp, pair))


def skewed_kl(p: Any, q: Any, skew: float, *, log: bool = False) -> Any:
    """Return the KL from p to a mixture of p and q, over the last axis.

    Let λ be the skew and m = λ p + (1 − λ) q: ``KL(p ‖ m) = Σ_v p_v log(p_v / m_v)``.

    ``p`` and ``q`` (…, V) probabilities, or log-probabilities with ``log``; ``skew`` is
    0 < λ < 1, without a unit. Returns (…) nats, from 0 (p = q) to log(1/λ), also where q = 0.

    Valid as `kl_divergence` is. With p the teacher and q the student this is DistiLLM's skew KL;
    with the arguments swapped, its skew reverse KL.

    >>> round(float(skewed_kl([1.0, 0.0], [0.0, 1.0], skew=0.1)), 6)
    2.302585

    Source: Ko et al. 2024, "DistiLLM", arXiv 2402.03898, section 3.1, where λ is α.
    """
    _fraction("skew", skew, "at 0 this is kl_divergence, at 1 it is 0 whatever p and q")
    xp, pair = _pair(p, q, log)
    return plain(_kl_to_mixture(xp, pair, skew, 1 - skew))


def js_divergence(p: Any, q: Any, *, weight: float = 0.5, log: bool = False) -> Any:
    """Return the Jensen–Shannon divergence over the last axis.

    Let w be the weight and m = w p + (1 − w) q: ``w KL(p ‖ m) + (1 − w) KL(q ‖ m)``.

    ``p`` and ``q`` (…, V) probabilities, or log-probabilities with ``log``; ``weight`` is
    0 < w < 1, p's share. Returns (…) nats, from 0 (p = q) to −w log w − (1−w) log(1−w), which is
    log 2 at w = ½ and reached where p and q have no outcome in common. Swapping p and q and
    putting 1 − w for w changes nothing.

    Valid as `kl_divergence` is.

    >>> round(float(js_divergence([1.0, 0.0], [0.5, 0.5])), 6)
    0.215762

    Source: Lin 1991, equation 4.1. GKD's JSD(β) (Agarwal et al. 2023, arXiv 2306.13649) is this
    with p the teacher, q the student and w = β. It goes to 0 as w goes to 0 or 1 (divided by w,
    to KL(p ‖ q) as w → 0); TRL puts KL(p ‖ q) for β = 0 and KL(q ‖ p) for β = 1 instead, a jump.
    """
    _fraction("weight", weight, "at both ends the divergence is 0 whatever p and q")
    xp, pair = _pair(p, q, log)
    from_p = _kl_to_mixture(xp, pair, weight, 1 - weight)
    from_q = _kl_to_mixture(xp, _swapped(pair), 1 - weight, weight)
    return plain(weight * from_p + (1 - weight) * from_q)


def alpha_divergence(p: Any, q: Any, alpha: float, *, log: bool = False) -> Any:
    """Return the α-divergence of p from q over the last axis.

    Let α be any finite number: ``(Σ_v p_v^α q_v^(1−α) − 1) / (α (α − 1))``, and its limits
    KL(p ‖ q) at α = 1, KL(q ‖ p) at α = 0. Near the limits no digits are lost.

    ``p`` and ``q`` (…, V) probabilities, or log-probabilities with ``log``; ``alpha`` without a
    unit. Returns (…), at least 0 and 0 when p = q, in nats at the limits. Infinite for α ≥ 1
    where p > 0 = q, for α ≤ 0 where q > 0 = p. Swapping p and q and putting 1 − α for α changes
    nothing: α = ½ is symmetric, 4 (1 − Σ √(p q)); α = 2 is half of Pearson's χ².

    Valid as `kl_divergence` is.

    >>> p, q = [0.5, 0.5], [0.8, 0.2]
    >>> [round(float(alpha_divergence(p, q, alpha)), 6) for alpha in (0, 0.5, 1, 2)]
    [0.192745, 0.205267, 0.223144, 0.28125]

    Source: Cressie and Read 1984, whose I^λ is this with λ = α − 1. Amari 2009, "α-Divergence Is
    Unique", whose D_a is this with a = 1 − 2α.
    """
    if not -math.inf < alpha < math.inf:
        raise ValueError(f"alpha is {alpha!r}; expected a finite number, such as 0.5")
    xp, pair = _pair(p, q, log)
    return plain(_alpha(xp, pair, alpha))


def renyi_divergence(p: Any, q: Any, alpha: float, *, log: bool = False) -> Any:
    """Return the Rényi divergence of order α of p from q, over the last axis.

    Let α > 0: ``log(Σ_v p_v^α q_v^(1−α)) / (α − 1)``, and its limits KL(p ‖ q) at α = 1 and
    ``log max_v p_v/q_v`` at α = ∞. With D the `alpha_divergence` it is
    ``log(1 + α (α − 1) D) / (α − 1)``, which loses no digits near α = 1 or p = q.

    ``p`` and ``q`` (…, V) probabilities, or log-probabilities with ``log``; ``alpha`` is α > 0,
    `math.inf` included. Returns (…) nats, at least 0, 0 when p = q, and never less for a larger
    α. Infinite for α ≥ 1 where p > 0 = q, and for every α where no outcome is common.

    Valid as `kl_divergence` is.

    >>> p, q = [0.5, 0.5], [0.8, 0.2]
    >>> [round(float(renyi_divergence(p, q, alpha)), 6) for alpha in (0.5, 1, 2, math.inf)]
    [0.105361, 0.223144, 0.446287, 0.916291]

    Source: van Erven and Harremoës 2014, "Rényi Divergence and Kullback–Leibler Divergence",
    arXiv 1206.2459, equation 1; theorem 3 (the order), theorem 6 (α = ∞).
    """
    if not alpha >= _SMALLEST:
        raise ValueError(f"alpha is {alpha!r}; expected {_SMALLEST:g} or more, or math.inf")
    xp, pair = _pair(p, q, log)
    if alpha == 1:
        return plain(_kl(xp, pair))
    if alpha == math.inf:
        highest = xp.max(xp.where(pair.both, -pair.u, -math.inf), axis=-1)
        return plain(xp.where(xp.any(pair.p_only, axis=-1), math.inf, xp.clip(highest, min=0.0)))
    log_sum = _log_power_sum(xp, pair, alpha)
    # Near zero the logarithm of the sum has lost its digits, and the α-divergence has not.
    near = xp.abs(log_sum) < 0.5
    rows = near[..., None]
    kept = pair._replace(
        u=xp.where(rows, pair.u, 0.0),
        gap=xp.where(rows, pair.gap, 0.0),
        log_p=xp.where(rows, pair.log_p, 0.0),
    )
    moved = alpha * (alpha - 1) * _alpha(xp, kept, alpha)
    value = xp.where(near, xp.log1p(xp.where(near, moved, 0.0)), log_sum) / (alpha - 1)
    infinite = xp.any(pair.p_only, axis=-1) & (alpha > 1)
    return plain(xp.where(infinite, math.inf, value))


def total_variation(p: Any, q: Any, *, log: bool = False) -> Any:
    """Return the total variation distance over the last axis.

    Let p and q be distributions over V outcomes: ``½ Σ_v |p_v − q_v|``, the most by which the
    probabilities of any event differ.

    ``p`` and ``q`` (…, V) probabilities, or log-probabilities with ``log``. Returns (…) without a
    unit, from 0 (p = q) to 1 (no outcome in common), and symmetric. Its gradient is taken as 0
    where p_v = q_v, where there is none.

    Valid as `kl_divergence` is. Pinsker: 2 TV² ≤ KL(p ‖ q).

    >>> round(float(total_variation([0.4, 0.4, 0.2], [0.6, 0.3, 0.1])), 6)
    0.2
    """
    xp, pair = _pair(p, q, log)
    # Libraries differ in the derivative of |x| at 0; that of a constant is 0 in all of them.
    difference = xp.where(pair.gap == 0, 0.0, xp.abs(pair.gap))
    return plain(0.5 * xp.sum(difference, axis=-1))


def exp_excess(xp: Any, u: Any) -> Any:
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


def check_outcomes(**arrays: Any) -> None:
    """Refuse arrays that are not of one shape (…, V)."""
    same_shape(**arrays)
    name, array = next(iter(arrays.items()))
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ShapeError(
            f"{name} has shape {tuple(array.shape)}; expected (…, V), the last axis over outcomes"
        )


class _Pair(NamedTuple):
    """Two distributions, and what the formulas take from them."""

    p: Any
    q: Any
    gap: Any  # q − p
    log_p: Any  # 0 unless both
    u: Any  # log(q/p), 0 unless both
    both: Any  # p > 0 and q > 0
    p_only: Any  # p > 0 and q = 0
    q_only: Any  # p = 0 and q > 0


def _pair(p: Any, q: Any, log: bool) -> tuple[Any, _Pair]:
    given = (p, q)
    xp, p, q = numeric(p, q)
    check_outcomes(p=p, q=q)
    for name, array, original in zip("pq", (p, q), given, strict=True):
        _check_distribution(xp, name, array, log, _tolerance(xp, original, log))
    possible, covered = (p > -math.inf, q > -math.inf) if log else (p > 0, q > 0)
    where = (possible & covered, possible & ~covered, covered & ~possible)
    return xp, (_from_logs if log else _from_probabilities)(xp, p, q, where)


def _from_probabilities(xp: Any, p: Any, q: Any, where: tuple[Any, Any, Any]) -> _Pair:
    """Differences of close numbers are exact (Sterbenz), so log(q/p) is log(1 + (q − p)/p)."""
    safe_p, safe_q = xp.where(where[0], p, 1.0), xp.where(where[0], q, 1.0)
    close = xp.abs(safe_q - safe_p) < 0.5 * safe_p
    log_p = xp.log(safe_p)
    relative = _share(xp, xp.where(close, safe_q - safe_p, 0.0), safe_p)
    u = xp.where(close, xp.log1p(relative), xp.log(safe_q) - log_p)
    return _Pair(p, q, q - p, log_p, u, *where)


def _share(xp: Any, part: Any, whole: Any) -> Any:
    """Return part / whole, of size 1 at most, with a gradient however small the whole.

    The derivative has 1/whole², which would overflow: what is tiny is first brought near 1.
    """
    smallest = float(xp.finfo(whole.dtype).smallest_normal)
    lift = constant(xp.where(whole < smallest**0.25, 1.0 / xp.clip(whole, min=smallest), 1.0))
    return part * lift / (whole * lift)


def _from_logs(xp: Any, log_p: Any, log_q: Any, where: tuple[Any, Any, Any]) -> _Pair:
    p, q = xp.exp(log_p), xp.exp(log_q)
    # An infinite logarithm is replaced before it is subtracted: its NaN would reach the gradient.
    safe_p, safe_q = xp.where(where[0], log_p, 0.0), xp.where(where[0], log_q, 0.0)
    u = safe_q - safe_p
    close = where[0] & (xp.abs(u) < 1)
    gap = xp.where(close, p * xp.expm1(xp.clip(u, -1.0, 1.0)), q - p)
    return _Pair(p, q, gap, safe_p, u, *where)


def _swapped(pair: _Pair) -> _Pair:
    return _Pair(
        p=pair.q,
        q=pair.p,
        gap=-pair.gap,
        log_p=pair.log_p + pair.u,
        u=-pair.u,
        both=pair.both,
        p_only=pair.q_only,
        q_only=pair.p_only,
    )


def _kl(xp: Any, pair: _Pair) -> Any:
    terms = _kl_terms(xp, pair.p, pair.gap, pair.u, pair.both)
    return xp.sum(xp.where(pair.p_only, math.inf, terms), axis=-1)


def _kl_terms(xp: Any, p: Any, gap: Any, u: Any, both: Any) -> Any:
    """Return p log(p/q) − p + q for u = log(q/p) and gap = q − p; it is q where p = 0."""
    near = both & (xp.abs(u) < 1)
    return xp.where(near, p * exp_excess(xp, xp.where(near, u, 0.0)), gap - p * u)


def _kl_to_mixture(xp: Any, pair: _Pair, keep: float, move: float) -> Any:
    """Return KL(p ‖ m) for m = keep·p + move·q, of which log(m/p) is log(1 + move (e^u − 1))."""
    close = pair.both & (pair.u > -1) & (pair.u < 30)
    step = xp.log1p(move * xp.expm1(xp.where(close, pair.u, 0.0)))
    # Far away the larger of p and q is taken out, so that no ratio overflows.
    # q/p is 0 where q is, but has a slope.
    ratio = _share(xp, xp.where(pair.p_only, pair.q, 0.0), xp.where(pair.p_only, pair.p, 1.0))
    low = xp.where(pair.both, xp.exp(-xp.abs(pair.u)), ratio)
    above = xp.log(keep * low + move) + pair.u
    below = xp.log(keep + move * low) if keep < 0.5 else xp.log1p(move * (low - 1.0))
    possible = pair.both | pair.p_only
    leap = xp.where(possible, xp.where(pair.u > 0, above, below), 0.0)
    terms = _kl_terms(xp, pair.p, move * pair.gap, xp.where(close, step, leap), possible)
    return xp.sum(terms, axis=-1)


def _alpha(xp: Any, pair: _Pair, alpha: float) -> Any:
    """Return the α-divergence as Σ [q − p − p (e^{bu} − 1)/b] / α, where b = 1 − α ≤ ½.

    The terms are those of (p^α q^b − α p − b q) / (−α b), never negative. For a small u they are
    p [φ(u) − φ(bu)/b] / α with φ = `exp_excess`: the second is at most half of the first.
    """
    if alpha < 0.5:
        pair, alpha, b = _swapped(pair), 1 - alpha, alpha
    else:
        b = 1 - alpha
    if abs(b) < xp.finfo(pair.p.dtype).smallest_normal:
        return _kl(xp, pair)
    bu = b * pair.u
    small = xp.abs(bu) < 1
    near = pair.both & small & (xp.abs(pair.u) < 1)
    s = xp.where(near, pair.u, 0.0)
    close = pair.p * (exp_excess(xp, s) - exp_excess(xp, b * s) / b)
    power = xp.exp(pair.log_p + xp.where(small, 0.0, bu)) - pair.p
    step = xp.where(small, pair.p * xp.expm1(xp.where(small, bu, 0.0)), power)
    far = pair.gap - xp.where(pair.both, step, -pair.p) / b
    terms = xp.where(near, close, far) / alpha
    return xp.sum(xp.where(pair.p_only & (b < 0), math.inf, terms), axis=-1)


def _log_power_sum(xp: Any, pair: _Pair, alpha: float) -> Any:
    """Return log Σ p^α q^(1−α) over the outcomes that both have, −∞ where there is none."""
    exponent = xp.where(pair.both, pair.log_p + (1 - alpha) * pair.u, -math.inf)
    common = xp.any(pair.both, axis=-1)
    peak = xp.where(common, xp.max(exponent, axis=-1), 0.0)
    total = xp.sum(xp.exp(exponent - peak[..., None]), axis=-1)
    return xp.where(common, xp.log(xp.where(common, total, 1.0)) + peak, -math.inf)


def _fraction(name: str, value: float, ends: str) -> None:
    if not _SMALLEST <= value < 1:
        raise ValueError(
            f"{name} is {value!r}; expected a number from {_SMALLEST:g} to below 1 ({ends})"
        )


def _check_distribution(xp: Any, name: str, values: Any, log: bool, tolerance: float) -> None:
    if 0 in values.shape:
        return
    if not log:
        least = xp.min(values)
        if known(~(least >= 0)):
            raise ValueError(
                f"{name} holds {number(least):g}; expected probabilities of 0 or more "
                "(give log-probabilities with log=True; for logits use kl_from_logits)"
            )
    total = xp.sum(xp.exp(values) if log else values, axis=-1)
    off = xp.max(xp.abs(total - 1.0))
    if known(~(off <= tolerance)):
        what = f"the exponential of a row of {name}" if log else f"a row of {name}"
        fix = "Subtract the log-sum-exp" if log else "Divide by the sum"
        raise ValueError(
            f"{what} sums to 1 only within {number(off):.3g}; expected {tolerance:.3g}. {fix} "
            "(for logits use kl_from_logits)"
        )


def _tolerance(xp: Any, values: Any, log: bool) -> float:
    """Return how far a row's sum may be from one: 1e-5, or the rounding of a 16-bit dtype.

    A log-probability of −16 is rounded sixteen times as much as a probability.
    """
    dtype = getattr(values, "dtype", None)
    if dtype is None or not xp.isdtype(dtype, "real floating"):
        return 1e-5
    return max(1e-5, (16 if log else 4) * float(xp.finfo(dtype).eps))
