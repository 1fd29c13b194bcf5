"""Reduction: a sum and a weight, divided exactly once.

Losses come per token or per pair. A micro-batch gives ``(sum, weight)``; the pairs of all
micro-batches, ranks or packed rows are added, and only then divided. That is why the mean does
not depend on how the batch was cut: a mean of means does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tunemath.arrays import boolean, numeric, plain
from tunemath.errors import MaskError, ShapeError

__all__ = ["masked_mean", "masked_sum", "pooled_mean"]

_WHY_NOTHING = (
    "at least one must count. Look at where the mask comes from: were the answers cut off, or is "
    "the mask inverted?"
)


def masked_sum(values: Any, mask: Any) -> tuple[Any, Any]:
    """Return the sum of the selected values, and how many were selected.

    Let v be values and m ∈ {0, 1} the mask, of the same shape: ``(Σ m·v, Σ m)``.

    ``values`` (…) in any unit; ``mask`` (…) of booleans or 0/1, never broadcast. Returns the sum,
    a 0-d array in the unit of values, and the weight, a 0-d int64 array (a count). NaN or infinity
    outside the mask leaves no trace, neither in the sum nor in its gradient. Nothing selected
    gives ``(0, 0)``: a micro-batch may be empty where the batch is not.

    >>> total, weight = masked_sum([0.1, 0.2, 1.0, 0.8], [0, 0, 1, 1])
    >>> float(total), int(weight)
    (1.8, 2)
    """
    xp, v = numeric(values)
    m = boolean(xp, mask, like=v)
    if m.shape != v.shape:
        raise ShapeError(
            f"mask {tuple(m.shape)} and values {tuple(v.shape)} differ; the mask needs one entry "
            "for each value (it is aligned with the targets: logits[:, :-1] predict ids[:, 1:])"
        )
    return plain(xp.sum(xp.where(m, v, 0.0))), plain(xp.sum(xp.astype(m, xp.int64)))


def masked_mean(values: Any, mask: Any) -> Any:
    """Return the mean of the selected values.

    Let v be values and m ∈ {0, 1} the mask: ``Σ m·v / Σ m``.

    ``values`` (…) in any unit; ``mask`` (…) of booleans or 0/1, never broadcast. Returns a 0-d
    array in the unit of values. A mask that selects nothing raises: its mean is no number.

    >>> round(float(masked_mean([0.1, 0.2, 1.0, 0.8], [0, 0, 1, 1])), 6)
    0.9
    """
    total, weight = masked_sum(values, mask)
    if not bool(weight > 0):
        size = math.prod(numeric(values)[1].shape)
        raise MaskError(f"the mask selects 0 of {size} values; {_WHY_NOTHING}")
    return pooled_mean([(total, weight)])


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
    total, weight = sum(s for s, _ in pairs), sum(w for _, w in pairs)
    if not bool(weight > 0):
        raise MaskError(f"0 values selected in {len(pairs)} parts; {_WHY_NOTHING}")
    xp, total, weight = numeric(total, weight)
    return plain(total / xp.astype(weight, total.dtype))
