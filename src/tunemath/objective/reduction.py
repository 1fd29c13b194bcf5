"""Reduction: a sum and a weight, divided exactly once.

Losses come per token or per pair. A micro-batch gives ``(sum, weight)``; the pairs of all
micro-batches, ranks or packed rows are added, and only then divided. That is why the mean does
not depend on how the batch was cut: a mean of means does. What counts as one is the choice:

- every token of the global batch: `masked_sum`, and `masked_mean` where the batch is whole;
- every sequence, however long: `sequence_sum`;
- nothing is divided: the sum is the first of the pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tunemath.arrays import boolean, count_dtype, known, number, numeric, plain, same_shape
from tunemath.errors import MaskError, ShapeError

__all__ = ["masked_mean", "masked_sum", "pooled_mean", "sequence_sum"]

_WHY_NOTHING = (
    "at least one must count. Look at where the mask comes from: were the answers cut off, or is "
    "the mask inverted?"
)


def masked_sum(values: Any, mask: Any, weights: Any = None) -> tuple[Any, Any]:
    """Return the sum of the selected values, and how many were selected.

    Let v be values, m ∈ {0, 1} the mask and w the weights (1 when not given), of one shape:
    ``(Σ m·w·v, Σ m·w)``.

    ``values`` (…) in any unit; ``mask`` (…) of booleans or 0/1, never broadcast; ``weights`` (…)
    of 0 or more, without a unit. Returns the sum, a 0-d array in the unit of values, and the
    weight, 0-d: a count, or Σ m·w where weights are given. NaN or infinity outside the mask, or of
    weight 0, leaves no trace, neither in the sum nor in its gradient. Nothing selected gives
    ``(0, 0)``: a micro-batch may be empty where the batch is not.

    >>> total, weight = masked_sum([0.1, 0.2, 1.0, 0.8], [0, 0, 1, 1])
    >>> float(total), int(weight)
    (1.8, 2)
    >>> total, weight = masked_sum([1.0, 3.0], [1, 1], weights=[1.0, 0.5])
    >>> float(total), float(weight)
    (2.5, 1.5)
    """
    xp, v, m, w = _read(values, mask, weights)
    if w is None:
        return plain(xp.sum(xp.where(m, v, 0.0))), plain(xp.sum(xp.astype(m, count_dtype(xp))))
    return plain(xp.sum(_weighed(xp, v, m, w))), plain(xp.sum(w))


def masked_mean(values: Any, mask: Any, weights: Any = None) -> Any:
    """Return the mean of the selected values.

    Let v be values, m ∈ {0, 1} the mask and w the weights (1 when not given):
    ``Σ m·w·v / Σ m·w``.

    ``values`` (…) in any unit; ``mask`` (…) of booleans or 0/1, never broadcast; ``weights`` (…)
    of 0 or more. Returns a 0-d array in the unit of values. A mask that selects nothing, or only
    what weighs nothing, raises: its mean is no number.

    >>> round(float(masked_mean([0.1, 0.2, 1.0, 0.8], [0, 0, 1, 1])), 6)
    0.9
    """
    total, weight = masked_sum(values, mask, weights)
    if known(weight <= 0):
        size = math.prod(numeric(values)[1].shape)
        what = "selects" if weights is None else "and weights above 0 select"
        raise MaskError(f"the mask {what} 0 of {size} values; {_WHY_NOTHING}")
    return pooled_mean([(total, weight)])


def sequence_sum(values: Any, mask: Any, weights: Any = None) -> tuple[Any, Any]:
    """Return the sum of each sequence's mean, and how many sequences there are.

    Let v be values, m ∈ {0, 1} the mask and w the weights (1 when not given) of sequence b:
    ``(Σ_b Σ_t m·w·v / Σ_t m·w, Σ_b 1)``.

    ``values`` (…, T) in any unit; ``mask`` (…, T) of booleans or 0/1; ``weights`` (…, T) of 0 or
    more. Returns the sum, a 0-d array in the unit of values, and the number of sequences, a 0-d
    array. A sequence of which nothing counts raises.

    Valid when a short answer shall weigh as much as a long one: a token of a sequence of n tokens
    weighs 1/n, which `masked_sum` avoids.

    >>> total, weight = sequence_sum([[1.0, 3.0], [5.0, 9.0]], [[1, 1], [1, 0]])
    >>> float(total), int(weight)
    (7.0, 2)
    """
    xp, v, m, w = _read(values, mask, weights)
    if v.ndim == 0:
        raise ShapeError("values is one number; expected (…, T), the last axis over tokens")
    w = xp.astype(m, v.dtype) if w is None else w
    each = xp.sum(w, axis=-1)
    if known(xp.any(each <= 0)):
        empty = int(xp.sum(xp.astype(each <= 0, xp.int32)))
        raise MaskError(
            f"in {empty} of {math.prod(each.shape)} sequence(s) nothing counts; {_WHY_NOTHING}"
        )
    means = xp.sum(_weighed(xp, v, m, w), axis=-1) / each
    return plain(xp.sum(means)), plain(xp.sum(xp.ones_like(each, dtype=count_dtype(xp))))


def pooled_mean(parts: Iterable[tuple[Any, Any]]) -> Any:
    """Return the mean over all parts of a batch, however it was cut.

    Let part k have sum s_k and weight w_k: ``Σ s_k / Σ w_k``.

    ``parts`` are the pairs of `masked_sum`, one a micro-batch or rank. Returns a 0-d array in the
    unit of the sums. Weights that add up to zero raise.

    >>> float(pooled_mean([(2.0, 1), (1.0, 3)]))
    0.75
    """
    pairs = list(parts)
    if not pairs:
        raise MaskError("there are no parts to pool; give one (sum, weight) or more")
    # Each sum on its own first: 16-bit ones would be added in their 8 or 11 bits.
    total = sum(numeric(s)[1] for s, _ in pairs)
    weight = sum(w for _, w in pairs)
    if known(weight > 0) is False:
        raise MaskError(f"{number(weight):g} values selected in {len(pairs)} parts; {_WHY_NOTHING}")
    xp, total, weight = numeric(total, weight)
    return plain(total / xp.astype(weight, total.dtype))


def _read(values: Any, mask: Any, weights: Any) -> tuple[Any, Any, Any, Any]:
    """Return the library, values, the mask, and the weights with 0 where the mask is off."""
    xp, v, *given = numeric(values, *(() if weights is None else (weights,)))
    m = boolean(xp, mask, like=v)
    if m.shape != v.shape:
        raise ShapeError(
            f"mask {tuple(m.shape)} and values {tuple(v.shape)} differ; the mask needs one entry "
            "for each value (it is aligned with the targets: logits[:, :-1] predict ids[:, 1:])"
        )
    if not given:
        return xp, v, m, None
    same_shape(values=v, weights=given[0])
    w = xp.where(m, given[0], 0.0)
    if known(~xp.all((w >= 0) & (w < math.inf))):
        raise ValueError("weights hold negative numbers, infinity or NaN; expected 0 or more")
    return xp, v, m, w


def _weighed(xp: Any, v: Any, m: Any, w: Any) -> Any:
    """Return m·w·v, with 0·∞ = 0: what weighs nothing leaves no trace, as what is masked out."""
    return xp.where(m & ((w > 0) | xp.isfinite(v)), v, 0.0) * w
