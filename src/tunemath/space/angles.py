"""How two subspaces lie to each other: principal angles, and the overlap in one number.

Let Q_A and Q_B have orthonormal columns that span the two subspaces, p and q of them, q ≤ p. The
principal angles 0 ≤ θ_1 ≤ … ≤ θ_q ≤ π/2 have ``cos θ_k = σ_k(Q_Aᵀ Q_B)``.
"""

from __future__ import annotations

from typing import Any

from tunemath.arrays import float_dtype, known, numeric, plain
from tunemath.errors import ShapeError

__all__ = ["principal_angles", "subspace_overlap"]


def principal_angles(A: Any, B: Any) -> Any:
    """Return the angles between the subspaces that the columns of A and of B span, in radians.

    A cosine of 1 − 10⁻¹⁶ is that of an angle of 10⁻⁸ and of none. So the small angles come from
    their sines, ``sin θ_k = σ_{q+1−k}(Q_B − Q_A Q_Aᵀ Q_B)``, and the others from their cosines.

    ``A`` (…, n, p) and ``B`` (…, n, q), at most n columns, linearly independent. Returns
    (…, min(p, q)), ascending, from 0 to π/2.

    >>> principal_angles([[1.0], [0.0]], [[1.0], [1e-9]]).tolist()
    [1e-09]

    Source: Björck and Golub 1973, doi 10.2307/2005662; Knyazev and Argentati 2002,
    doi 10.1137/S1064827500377332, algorithm 3.1.
    """
    xp, a, b, dtype = _bases(A, B)
    if a.shape[-1] < b.shape[-1]:
        a, b = b, a
    shared = xp.matmul(xp.matrix_transpose(a), b)
    cosines = xp.clip(xp.linalg.svdvals(shared), 0.0, 1.0)
    sines = xp.flip(xp.linalg.svdvals(b - xp.matmul(a, shared)), axis=-1)
    small = cosines * cosines > 0.5
    # Either branch is kept off the ends, where its derivative has no value.
    by_sine = xp.asin(xp.where(small, xp.clip(sines, 0.0, 1.0), 0.5))
    by_cosine = xp.acos(xp.where(small, 0.5, cosines))
    return xp.astype(xp.where(small, by_sine, by_cosine), dtype)


def subspace_overlap(A: Any, B: Any) -> Any:
    """Return the share of the smaller subspace that lies in the other: the mean of cos² θ.

    ``‖Q_Aᵀ Q_B‖_F² / min(p, q)``: 1 if one contains the other, 0 if they are orthogonal, and
    ``max(p, q) / n`` in the mean over random ones.

    ``A`` (…, n, p) and ``B`` (…, n, q), as for `principal_angles`. Returns (…).

    >>> plane, line = [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[1.0], [0.0], [1.0]]
    >>> round(float(subspace_overlap(plane, line)), 6)
    0.5

    Source: Hu et al. 2021, arXiv 2106.09685, equation 4.
    """
    xp, a, b, dtype = _bases(A, B)
    shared = xp.matmul(xp.matrix_transpose(a), b)
    total = xp.sum(xp.sum(shared * shared, axis=-1), axis=-1)
    return plain(xp.astype(total / min(a.shape[-1], b.shape[-1]), dtype))


def _bases(A: Any, B: Any) -> tuple[Any, Any, Any, Any]:
    """Return the library, orthonormal bases in its widest dtype, and the dtype of A."""
    xp, a, b = numeric(A, B)
    given = f"A {tuple(a.shape)} and B {tuple(b.shape)}"
    if a.ndim < 2 or b.ndim < 2 or a.shape[-2] != b.shape[-2]:
        raise ShapeError(f"{given} span no subspaces of one space; expected (n, p) and (n, q)")
    if not 0 < min(a.shape[-1], b.shape[-1]) <= max(a.shape[-1], b.shape[-1]) <= a.shape[-2]:
        raise ShapeError(f"{given}; expected from 1 to n columns, each a direction in n dimensions")
    return xp, _basis(xp, a, "A"), _basis(xp, b, "B"), a.dtype


def _basis(xp: Any, columns: Any, name: str) -> Any:
    wide = xp.astype(columns, float_dtype(xp))
    q, r = xp.linalg.qr(wide, mode="reduced")
    heights = xp.abs(xp.linalg.diagonal(r))
    least = float(xp.finfo(wide.dtype).eps) * columns.shape[-2]
    if known(xp.all(heights > least * xp.max(heights, axis=-1, keepdims=True))) is False:
        raise ShapeError(
            f"the columns of {name} are not linearly independent; give a basis, such as the "
            "singular vectors of the values that are not zero"
        )
    return q
