"""The best matrix of a given rank: exact, or in four passes over the matrix with a certificate.

Let M (m, n) have the singular values σ_1 ≥ σ_2 ≥ …: no matrix of rank r is nearer to M than
``√(Σ_{k > r} σ_k²)`` in Frobenius norm (Eckart and Young 1936), and the first r singular vectors
reach it. A full decomposition of a large matrix takes minutes; the few largest singular values
are found from a small subspace that products with M itself point to (Musco and Musco 2015).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import array_api_compat
import numpy as np

from tunemath.arrays import number, numeric, positive
from tunemath.errors import ShapeError

__all__ = ["LowRank", "low_rank"]

_EXACT = 1024  # the smaller side up to which the full decomposition is quick
_SPARE = 8  # columns of the subspace beyond the rank
_ROWS = 512  # of a block whose elements are squared at a time
_DOUBTFUL = 0.01  # share of the squared error that rounding may have, else it is measured


@dataclass(frozen=True)
class LowRank:
    """An approximation of a matrix at a given rank, by its factors, and how far it is off."""

    left: Any
    """(m, r): the left singular vectors, each times its singular value."""
    right: Any
    """(r, n): the right singular vectors."""
    singular_values: Any
    """(r,): the approximation's singular values, descending; of M they are lower bounds."""
    relative_error: float
    """‖M − left @ right‖_F / ‖M‖_F; 0 for a matrix of zeros."""
    bound: float
    """What the relative error certainly does not exceed, rounding included."""

    @cached_property
    def approximation(self) -> Any:
        """(m, n): left @ right, formed when first asked for."""
        return self.left @ self.right


def low_rank(
    matrix: Any, rank: int, *, exact: bool | None = None, passes: int = 4, seed: int = 0
) -> LowRank:
    """Return the matrix of rank at most ``rank`` that is nearest in Frobenius norm.

    Let M = U Σ Vᵀ be the singular value decomposition: ``M_r = Σ_{k ≤ r} σ_k u_k v_kᵀ``, whose
    error is ``‖M − M_r‖_F = √(Σ_{k > r} σ_k²)``.

    ``matrix`` (m, n); ``rank`` from 1 to min(m, n). ``exact`` is true for the full decomposition,
    false for the approximate one in an even number of ``passes`` over the matrix from the random
    numbers of ``seed``; by default it depends on whether the smaller side is over 1,024. Returns a
    `LowRank`; its ``bound`` holds for the matrix at hand, not in expectation.

    >>> fit = low_rank([[3.0, 0.0], [0.0, 4.0]], rank=1)
    >>> fit.approximation.tolist(), float(fit.relative_error)
    ([[0.0, 0.0], [0.0, 4.0]], 0.6)

    Source: Eckart and Young 1936; the approximate one is block Lanczos bidiagonalisation with full
    reorthogonalisation (Golub, Luk and Overton 1981; Musco and Musco 2015, arXiv 1504.05477).
    """
    xp, m = numeric(matrix)
    if m.ndim != 2:
        raise ShapeError(f"matrix has shape {tuple(m.shape)}; expected two axes (m, n)")
    rank, passes = positive(rank=rank, passes=passes)
    least = min(m.shape)
    if rank > least:
        raise ShapeError(f"rank {rank} for a matrix {tuple(m.shape)}; expected at most {least}")
    if passes % 2:
        raise ShapeError(f"passes is {passes}; expected an even number, there and back")
    total = _square_norm(xp, m)
    if not math.isfinite(total):
        raise ValueError("matrix holds NaN or infinite values; expected finite numbers")
    width = rank + _SPARE
    if exact is None:
        exact = least <= _EXACT or width * passes > least
    if exact or width * passes // 2 > least:
        u, s, vh = xp.linalg.svd(m, full_matrices=False)
        left, s, right = u[:, :rank] * s[:rank], s[:rank], vh[:rank, :]
        return _measured(xp, m, left, s, right, total)
    basis, image = _subspace(xp, m, width, passes, seed)
    left, s, right = _decomposed(xp, basis, image, rank)
    rest = total - number(xp.sum(xp.astype(s, xp.float64) ** 2))
    slack = _unit(xp, m) * total
    if rest * _DOUBTFUL <= slack:
        return _measured(xp, m, left, s, right, total)
    error = math.sqrt(rest / total)
    return LowRank(left, right, s, error, math.sqrt((rest + slack) / total))


def _subspace(xp: Any, m: Any, width: int, passes: int, seed: int) -> tuple[Any, Any]:
    """Return an orthonormal basis Q (m, w) of a block Krylov space, and QᵀM (w, n)."""
    noise = np.random.default_rng(seed).standard_normal((m.shape[1], width))
    block = m @ _like(xp, noise, m)
    bases: list[Any] = []
    images: list[Any] = []
    while True:
        basis = _orthonormal(xp, block, bases)
        image = xp.matrix_transpose(basis) @ m
        bases.append(basis)
        images.append(image)
        if len(bases) == passes // 2:
            return xp.concat(bases, axis=1), xp.concat(images, axis=0)
        block = m @ xp.linalg.qr(xp.matrix_transpose(image), mode="reduced")[0]


def _orthonormal(xp: Any, block: Any, bases: list[Any]) -> Any:
    """Return an orthonormal basis of a block, orthogonal to those before.

    Once more after the columns have length 1: a column that nothing was left of is rounding, some
    of it along the former bases.
    """
    for _ in range(2 if bases else 1):
        for basis in bases:
            block = block - basis @ (xp.matrix_transpose(basis) @ block)
        block = xp.linalg.qr(block, mode="reduced")[0]
    return block


def _decomposed(xp: Any, basis: Any, image: Any, rank: int) -> tuple[Any, Any, Any]:
    """Return the first singular triples of Q (QᵀM), the left vectors times their values."""
    u, s, vh = xp.linalg.svd(image, full_matrices=False)
    return (basis @ u[:, :rank]) * s[:rank], s[:rank], vh[:rank, :]


def _measured(xp: Any, m: Any, left: Any, s: Any, right: Any, total: float) -> LowRank:
    """Return an approximation with its error by subtraction, block by block of the rows."""
    if total == 0:
        return LowRank(left, right, s, 0.0, 0.0)
    rest = sum(_square_norm(xp, m[rows, :] - left[rows, :] @ right) for rows in _blocks(m))
    error, unit = math.sqrt(rest / total), _unit(xp, m)
    return LowRank(left, right, s, error, error * (1 + unit) + unit)


def _square_norm(xp: Any, m: Any) -> float:
    """Return ‖M‖_F², summed in float64."""
    total = 0.0
    for rows in _blocks(m):
        norms = xp.linalg.vector_norm(m[rows, :], axis=1)
        total += number(xp.sum(xp.astype(norms, xp.float64) ** 2))
    return total


def _blocks(m: Any) -> Iterator[slice]:
    size = m.shape[0]
    return (slice(i, min(i + _ROWS, size)) for i in range(0, size, _ROWS))


def _unit(xp: Any, m: Any) -> float:
    """Return the relative rounding of a sum over M's elements, with room to spare."""
    return 4 * float(xp.finfo(m.dtype).eps) * math.sqrt(max(m.shape))


def _like(xp: Any, noise: np.ndarray, m: Any) -> Any:
    """Return random numbers as an array of M's library, dtype and device."""
    return xp.asarray(noise, dtype=m.dtype, device=array_api_compat.device(m))
