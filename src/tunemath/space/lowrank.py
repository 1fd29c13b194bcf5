"""The best matrix of a given rank: exact, or in a few passes over the matrix with a certificate.

Let M (m, n) have the singular values σ_1 ≥ σ_2 ≥ …: no matrix of rank r is nearer to M than
``√(Σ_{k > r} σ_k²)`` in Frobenius norm (Eckart and Young 1936), and the first r singular vectors
reach it. A full decomposition of a large matrix takes minutes; the few largest singular values
are found from a small subspace:

1. Signed sums of M's rows, C = S M of some hundred rows, keep the directions in which M is large
   (Clarkson and Woodruff 2013); a few products with C, which cost little, sort them out.
2. From these, products with M and Mᵀ in turn make a block Krylov space (Musco and Musco 2015).
3. M is projected onto it. What the projection leaves is known from one sum of squares:
   ``‖M − M P‖_F² = ‖M‖_F² − ‖M P‖_F²`` for any orthogonal projection P.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import array_api_compat
import numpy as np

from tunemath.arrays import float_dtype, number, numeric, positive
from tunemath.errors import ShapeError

__all__ = ["LowRank", "low_rank"]

_EXACT = 1024  # the smaller side up to which the full decomposition is quick
_SKETCH = 253  # rows of the sketch, or five times the subspace
_ROWS = 128  # of a block whose elements are squared at a time
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
    false for the approximate one in ``passes`` ≥ 2 over the matrix, from the random numbers of
    ``seed``; by default it depends on whether the smaller side is over 1,024. A matrix that the
    subspace would fill is decomposed in full all the same. Returns a `LowRank`;
    its ``bound`` holds for the matrix at hand, not in expectation.

    >>> fit = low_rank([[3.0, 0.0], [0.0, 4.0]], rank=1)
    >>> fit.approximation.tolist(), float(fit.relative_error)
    ([[0.0, 0.0], [0.0, 4.0]], 0.6)

    Source: Eckart and Young 1936; Clarkson and Woodruff 2013, arXiv 1207.6365; Musco and Musco
    2015, arXiv 1504.05477.
    """
    xp, m = numeric(matrix)
    if m.ndim != 2:
        raise ShapeError(f"matrix has shape {tuple(m.shape)}; expected two axes (m, n)")
    rank, passes = positive(rank=rank, passes=passes)
    least = min(m.shape)
    if rank > least:
        raise ShapeError(f"rank {rank} for a matrix {tuple(m.shape)}; expected at most {least}")
    if passes < 2:
        raise ShapeError("passes is 1; expected 2 or more: a sketch, and a product")
    total = _square_norm(xp, m)
    if not math.isfinite(total):
        raise ValueError("matrix holds NaN or infinite values; expected finite numbers")
    width = -(-max(7 * rank // 4, rank + 8) // 16) * 16  # products like multiples of 16
    fits = width * (passes // 2) <= least
    if not fits or (least <= _EXACT if exact is None else exact):
        u, s, vh = xp.linalg.svd(m, full_matrices=False)
        left, s, right = u[:, :rank] * s[:rank], s[:rank], vh[:rank, :]
        return _measured(xp, m, left, s, right, total)
    left, s, right = _approximate(xp, m, rank, width, passes, np.random.default_rng(seed))
    rest = total - number(xp.sum(xp.astype(s, float_dtype(xp)) ** 2))
    slack = _unit(xp, m) * total
    if rest * _DOUBTFUL <= slack:
        return _measured(xp, m, left, s, right, total)
    return LowRank(left, right, s, math.sqrt(rest / total), math.sqrt((rest + slack) / total))


def _approximate(
    xp: Any, m: Any, rank: int, width: int, passes: int, rng: np.random.Generator
) -> tuple[Any, Any, Any]:
    """Return the first singular triples of M on a block Krylov space, as left, σ, right.

    The last pass is a product with the whole space: M W for an orthonormal W (n, w) after an even
    number of passes, Mᵀ Q for a Q (m, w) after an odd one.
    """
    transposed = xp.matrix_transpose(m)
    spaces: tuple[list[Any], list[Any]] = ([], [])  # of the rows' side, and of the columns'
    images: tuple[list[Any], list[Any]] = ([], [])  # M W, and Mᵀ Q
    block = _start(xp, m, width, rng)
    for turn in range(passes - 1):
        side = turn % 2
        # Bases of the side that M isn't projected on only have to point well.
        rounds = 2 if side == passes % 2 else 1
        basis = _orthonormal(xp, block, spaces[side], rounds)
        spaces[side].append(basis)
        block = (transposed if side else m) @ basis
        images[side].append(block)
    side = passes % 2
    space, image = (xp.concat(parts[side], axis=1) for parts in (spaces, images))
    gram = xp.astype(xp.matrix_transpose(image), float_dtype(xp)) @ xp.astype(
        image, float_dtype(xp)
    )
    values, vectors = xp.linalg.eigh(gram)
    values = xp.astype(xp.sqrt(xp.clip(xp.flip(values)[:rank], 0.0)), m.dtype)
    vectors = xp.astype(xp.flip(vectors, axis=1)[:, :rank], m.dtype)
    there, here = image @ vectors, space @ vectors
    if not side:
        return there, values, xp.matrix_transpose(here)
    unit = there / xp.where(values > 0, values, 1.0)
    return here * values, values, xp.matrix_transpose(unit)


def _start(xp: Any, m: Any, width: int, rng: np.random.Generator) -> Any:
    """Return (n, w) of directions in which M is large, from a sketch of its rows in one pass."""
    rows, columns = m.shape
    short = max(_SKETCH, 5 * width + 1)
    if 2 * short > rows:
        return _like(xp, rng.standard_normal((columns, width)), m)
    # Row i goes into sum i modulo an odd number: neither neighbours nor the like features of all
    # heads come together.
    many = rows // short
    signs = _like(xp, rng.choice((-1.0, 1.0), (short, 1, many)), m)
    body, rest = m[: short * many, :], m[short * many :, :]
    apart = xp.permute_dims(xp.reshape(body, (many, short, columns)), (1, 0, 2))
    sketch = (signs @ apart)[:, 0, :]
    if rest.shape[0]:
        sketch = xp.concat((sketch[: rest.shape[0], :] + rest, sketch[rest.shape[0] :, :]), axis=0)
    across = xp.matrix_transpose(sketch)
    block = across @ _like(xp, rng.standard_normal((short, width)), m)
    return across @ _normalised(xp, sketch @ _normalised(xp, block))


def _orthonormal(xp: Any, block: Any, bases: list[Any], rounds: int) -> Any:
    """Return an orthonormal basis of a block, orthogonal to those before.

    It takes two rounds: what was small before its columns had length 1 is rounding, some of it
    along the former bases.
    """
    for _ in range(rounds):
        for basis in bases:
            block = block - basis @ (xp.matrix_transpose(basis) @ block)
        block = _normalised(xp, block)
    return block


def _normalised(xp: Any, block: Any) -> Any:
    """Return an orthonormal basis of a block's columns: by its Gram matrix where that suffices.

    Source: Stathopoulos and Wu 2002, doi 10.1137/S1064827500370883 (SVQB).
    """
    values, vectors = xp.linalg.eigh(xp.astype(xp.matrix_transpose(block) @ block, float_dtype(xp)))
    if not number(values[0]) > 1e3 * float(xp.finfo(block.dtype).eps) * number(values[-1]):
        return xp.linalg.qr(block, mode="reduced")[0]
    return block @ xp.astype(vectors / xp.sqrt(values), block.dtype)


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
        total += number(xp.sum(xp.astype(norms, float_dtype(xp)) ** 2))
    return total


def _blocks(m: Any) -> Iterator[slice]:
    size = m.shape[0]
    return (slice(i, min(i + _ROWS, size)) for i in range(0, size, _ROWS))


def _unit(xp: Any, m: Any) -> float:
    """Return the relative rounding of a sum over M's elements, with room to spare."""
    return 2 * float(xp.finfo(m.dtype).eps) * math.sqrt(max(m.shape))


def _like(xp: Any, noise: np.ndarray, m: Any) -> Any:
    """Return random numbers as an array of M's library, dtype and device."""
    return xp.asarray(noise, dtype=m.dtype, device=array_api_compat.device(m))
