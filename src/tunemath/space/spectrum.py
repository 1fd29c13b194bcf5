"""The singular values of an update: how many directions a fine-tune really used.

Let σ_1 ≥ σ_2 ≥ … be the singular values of ΔW. A LoRA update of rank r has at most r that are
not zero; how evenly they are spread says how much of the rank was used.
"""

from __future__ import annotations

import math
from typing import Any

from tunemath.arrays import float_dtype, known, number, numeric, plain
from tunemath.errors import ShapeError
from tunemath.space.delta import check_factors

__all__ = [
    "effective_rank",
    "effective_rank_bounds",
    "energy",
    "factor_singular_values",
    "stable_rank",
]

_ROUND = 1e-6  # ratio of a Gram matrix's eigenvalues from which its root has ten digits


def factor_singular_values(A: Any, B: Any, scale: float = 1.0) -> Any:
    """Return the singular values of ``s·B A`` without ever forming it.

    Let B = Q_B R_B and Aᵀ = Q_A R_A with orthonormal columns in Q_B and Q_A. Then
    ``σ(s·B A) = |s| σ(R_B R_Aᵀ)``, a matrix of at most r × r. R is a root of the Gram matrix in
    float64, and comes from a QR factorisation where that would cost digits.

    ``A`` (…, r, d_in); ``B`` (…, d_out, r); ``scale`` is s. Returns (…, min(r, d_in, d_out)),
    descending; the update's other singular values are exactly zero.

    >>> factor_singular_values([[3.0, 4.0]], [[2.0], [0.0]], scale=0.5).tolist()
    [5.0]
    """
    xp, a, b = numeric(A, B)
    check_factors(a, b)
    core = xp.matmul(_root(xp, b), xp.matrix_transpose(_root(xp, xp.matrix_transpose(a))))
    return abs(scale) * xp.astype(xp.linalg.svdvals(core), b.dtype)


def _root(xp: Any, y: Any) -> Any:
    """Return R, with as many columns as y, for which RᵀR = yᵀy."""
    y = xp.astype(y, float_dtype(xp))
    if y.shape[-2] > y.shape[-1] and xp.finfo(y.dtype).bits == 64:
        values, vectors = xp.linalg.eigh(xp.matmul(xp.matrix_transpose(y), y))
        # The root of a Gram matrix loses twice the digits that the condition number has.
        if known(xp.all(values[..., 0] > _ROUND * values[..., -1])):
            return xp.sqrt(values)[..., None] * xp.matrix_transpose(vectors)
    return xp.linalg.qr(y, mode="reduced")[1]


def effective_rank(singular_values: Any) -> Any:
    """Return the effective rank: as how many equal singular values these are spread.

    Let p_k = σ_k / Σ σ: ``exp(−Σ p_k log p_k)``, where a zero adds nothing.

    ``singular_values`` (…, k), at least 0. Returns (…), from 1 to k, and 0 for an update of zeros.

    >>> float(effective_rank([1.0, 1.0, 0.0])), float(effective_rank([0.0, 0.0]))
    (2.0, 0.0)

    Source: Roy and Vetterli 2007, "The effective rank", definition 2: the entropy of σ, not of σ².
    """
    xp, s = _values(singular_values)
    total = xp.sum(s, axis=-1, keepdims=True)
    p = s / xp.where(total > 0, total, 1.0)
    entropy = -xp.sum(p * xp.log(xp.where(p > 0, p, 1.0)), axis=-1)
    return plain(xp.where(total[..., 0] > 0, xp.exp(entropy), 0.0))


def effective_rank_bounds(
    singular_values: Any, square_sum: float, size: int
) -> tuple[float, float]:
    """Return between what the effective rank lies where only the first singular values are known.

    Let τ be the last of the k known values and R² what they leave of the sum of squares. The
    unknown ones are at most τ each. Their entropy, and with it the whole, is largest when R² is
    spread evenly over all ``size − k`` of them, and least when it is in values of τ, ``R² / τ²``
    of them (a fraction counts as such; one, of size R, where R < τ).

    ``singular_values`` (k,), descending; ``square_sum`` is Σ σ² of all; ``size`` is how many there
    are. The known values are taken as exact. Returns both bounds, equal where none is unknown.

    >>> low, high = effective_rank_bounds([2.0, 1.0], square_sum=7.0, size=6)
    >>> float(effective_rank([2.0, 1.0, 1.0, 1.0])) == low, high > low
    (True, True)
    """
    _, s = numeric(singular_values)
    if s.ndim != 1 or not 0 < s.shape[0] <= size:
        raise ShapeError(f"{tuple(s.shape)} singular values of {size}; expected (k,), 0 < k ≤ size")
    known_values = [number(value) for value in s]
    rest = square_sum - math.fsum(value * value for value in known_values)
    more, last = size - len(known_values), known_values[-1]
    exact = number(effective_rank(s))
    if more == 0 or last * last == 0 or rest <= 0:
        return exact, exact
    fewest = min(float(more), rest / last**2)
    lower = (fewest, last) if fewest > 1 else (1.0, math.sqrt(rest))
    spread = (float(more), math.sqrt(rest / more))
    low, high = (_with_equal(known_values, *each) for each in (lower, spread))
    return min(low, high), high


def _with_equal(values: list[float], count: float, value: float) -> float:
    """Return the effective rank of values and of ``count`` more that are equal."""
    total = math.fsum(values) + count * value
    terms = [(1.0, each) for each in values if each > 0] + [(count, value)]
    return math.exp(-math.fsum(n * v / total * math.log(v / total) for n, v in terms))


def stable_rank(singular_values: Any) -> Any:
    """Return the stable rank: the update's squared Frobenius norm over its squared largest value.

    ``Σ σ_k² / σ_1²``.

    ``singular_values`` (…, k), at least 0. Returns (…), from 1 to k, and 0 for an update of zeros.
    It never exceeds the rank, and small singular values hardly change it.

    >>> float(stable_rank([2.0, 1.0, 1.0]))
    1.5
    """
    xp, s = _values(singular_values)
    return plain(xp.sum(s * s, axis=-1))


def energy(singular_values: Any) -> Any:
    """Return the share of the update that its first k directions carry, for each k.

    ``Σ_{j ≤ k} σ_j² / Σ σ²``: one less the squared relative error of `low_rank` at rank k.

    ``singular_values`` (…, k), at least 0 and descending. Returns (…, k), rising to 1; zeros for
    an update of zeros.

    >>> energy([4.0, 3.0, 0.0]).tolist()
    [0.64, 1.0, 1.0]
    """
    xp, s = _values(singular_values)
    if bool(xp.any(s[..., 1:] > s[..., :-1])):
        raise ShapeError("singular values rise along the last axis; give them in descending order")
    cumulative = xp.cumulative_sum(s * s, axis=-1)
    total = cumulative[..., -1:]
    return cumulative / xp.where(total > 0, total, 1.0)


def _values(singular_values: Any) -> tuple[Any, Any]:
    """Return the values divided by the largest, so that squaring can't over- or underflow."""
    xp, s = numeric(singular_values)
    if s.ndim == 0 or s.shape[-1] == 0:
        raise ShapeError(
            f"singular values have shape {tuple(s.shape)}; expected (…, k) with at least one"
        )
    if not bool(xp.all(s >= 0)):
        raise ValueError("singular values are negative or NaN; expected numbers of 0 or more")
    largest = xp.max(s, axis=-1, keepdims=True)
    return xp, s / xp.where(largest > 0, largest, 1.0)
