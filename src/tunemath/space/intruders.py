"""Intruder dimensions: new directions that a fine-tune made as large as the base's largest.

Let u_1 … u_k be the first k left singular vectors of the tuned weight, and x_i those of the base's.
u_j is an intruder where ``max_i |u_jᵀ x_i| < ε``: it is like no direction that the base had
(Shuttleworth et al. 2024, arXiv 2410.21228, definition and algorithm 1).

All x_i take a full decomposition. Without it the largest cosine lies between two bounds, both from
a few products of the base W with u_j. The squared cosines are the masses that u_j puts on the
eigenvalues σ_i² of W Wᵀ, of which n steps of Lanczos (by Golub and Kahan's bidiagonalisation) know
the first 2n moments:

- above: no point x has more mass than ``1 / Σ_{k < n} π_k(x)²``, Christoffel's function of the
  orthonormal polynomials π_k (Akhiezer 1965, chapter 2);
- below: a Ritz vector z with ``‖W Wᵀ z − θ z‖ ≤ ρ`` lies within ``ρ / δ`` of the base's directions
  whose σ² is nearer to θ than δ, so these hold at least ``|u_jᵀ z| − ρ / δ`` of u_j.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunemath.arrays import number, numeric, positive
from tunemath.errors import ShapeError
from tunemath.space.lowrank import LowRank, low_rank

__all__ = ["Intruders", "intruder_dimensions"]

_EXACT = 1024  # the smaller side up to which a full decomposition settles what is left open
_STEPS = 32
_CHECKED = (4, 8, 12, 16, 24, _STEPS)  # steps after which vectors that are settled are let go
_ONE = 0.01  # directions whose σ² differ by this share count as one
_PASSES = 16
_POINTS = 32  # between neighbouring Ritz values
_BETWEEN = 1.01  # what Christoffel's function may rise to between two of these points


@dataclass(frozen=True)
class Intruders:
    """How alike the base's directions a tuned weight's first directions are."""

    epsilon: float
    """A direction under this cosine with every direction of the base is an intruder."""
    cosines_lower: tuple[float, ...]
    """Of each, what the largest cosine is at least."""
    cosines_upper: tuple[float, ...]
    """Of each, what it is at most; equal to the former where all is decomposed."""

    @property
    def lower(self) -> int:
        """How many are certainly intruders."""
        return sum(cosine < self.epsilon for cosine in self.cosines_upper)

    @property
    def upper(self) -> int:
        """How many are not certainly like a direction of the base."""
        return sum(cosine < self.epsilon for cosine in self.cosines_lower)


def intruder_dimensions(
    base: Any, tuned: Any, k: int = 10, epsilon: float = 0.5, *, exact: bool | None = None
) -> Intruders:
    """Return which of the first ``k`` directions of a tuned weight the base did not have.

    ``base`` and ``tuned`` (m, n); ``k`` up to min(m, n); ``epsilon`` from 0 to 1. ``exact`` is
    true for two full decompositions, false for the bounds alone; by default the decompositions
    settle what the bounds leave open where the smaller side is at most 1,024. Left singular
    vectors are compared. In the bounds, directions of the base whose σ² differ by less than 1 %
    count as one; none is found for what a base with more rows than columns leaves out.

    >>> import numpy as np
    >>> base, tuned = np.diag([2.0, 1.0, 0.0]), np.diag([2.0, 1.0, 3.0])
    >>> found = intruder_dimensions(base, tuned, k=2)
    >>> found.cosines_upper, found.lower, found.upper
    ((0.0, 1.0), 1, 1)

    Source: Shuttleworth et al. 2024, arXiv 2410.21228, with k = 10 and ε = 0.5.
    """
    xp, w, t = numeric(base, tuned)
    if w.ndim != 2 or w.shape != t.shape:
        raise ShapeError(
            f"base {tuple(w.shape)} and tuned {tuple(t.shape)}; expected one shape (m, n)"
        )
    (k,) = positive(k=k)
    if k > min(w.shape):
        raise ShapeError(f"k is {k} for weights {tuple(w.shape)}; expected at most {min(w.shape)}")
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon is {epsilon!r}; expected a cosine, above 0 and at most 1")
    if exact:
        return _exact(xp, w, t, k, epsilon)
    found = bounded(w, t, low_rank(t, k, exact=False, passes=_PASSES), epsilon)
    if exact is None and min(w.shape) <= _EXACT and found.lower < found.upper:
        return _exact(xp, w, t, k, epsilon)
    return found


def _exact(xp: Any, w: Any, t: Any, k: int, epsilon: float) -> Intruders:
    before, values, _ = xp.linalg.svd(w, full_matrices=False)
    own = values > float(xp.finfo(w.dtype).eps) * max(w.shape) * values[0]
    before = before * xp.astype(own, w.dtype)  # what belongs to σ = 0 is no direction of w
    after = xp.linalg.svd(t, full_matrices=False)[0][:, :k]
    cosines = xp.max(xp.abs(xp.matrix_transpose(before) @ after), axis=0)
    found = tuple(number(cosine) for cosine in cosines)
    return Intruders(epsilon, found, found)


def bounded(w: Any, t: Any, fit: LowRank, epsilon: float) -> Intruders:
    """Return bounds for the directions of ``fit``, which approximates the tuned weight ``t``."""
    xp, w, t = numeric(w, t)
    values = xp.where(fit.singular_values > 0, fit.singular_values, 1.0)
    y = xp.matrix_transpose(fit.left / values)  # (k, m), as all blocks of vectors below
    rest = (y @ t) @ xp.matrix_transpose(t) - y * (fit.singular_values**2)[:, None]
    off = xp.linalg.vector_norm(rest, axis=1) / (_ONE * values**2)
    found = _cosine_bounds(xp, w, y, epsilon)
    lower, upper = [], []
    for (low, high), slack in zip(found, (number(each) for each in off), strict=True):
        lower.append(max(0.0, low - slack))
        upper.append(min(1.0, high + slack))
    return Intruders(epsilon, tuple(lower), tuple(upper))


def _cosine_bounds(xp: Any, w: Any, y: Any, epsilon: float) -> list[tuple[float, float]]:
    """Return bounds on each row's largest cosine with a left singular vector of w.

    The rows are let go as soon as they are on one side of ε, or the steps have met all there is.
    """
    found = [(0.0, 1.0)] * y.shape[0]
    active = list(range(y.shape[0]))
    lefts, rights = [y], []
    tiny = 10 * float(xp.finfo(w.dtype).eps) * number(xp.linalg.vector_norm(w))
    alphas, betas = np.zeros((2, y.shape[0], 0))
    for step in range(1, _STEPS + 1):
        right, alpha = _next(xp, lefts[-1] @ w, rights)
        rights.append(right)
        left, beta = _next(xp, right @ xp.matrix_transpose(w), lefts)
        lefts.append(left)
        alphas = np.concatenate((alphas, alpha), axis=1)
        betas = np.concatenate((betas, beta), axis=1)
        keep = []
        for row, vector in enumerate(active):
            met_all = min(alphas[row, -1], betas[row, -1]) <= tiny
            if met_all or step in _CHECKED:
                low, high = _largest_mass(alphas[row], betas[row], met_all, tiny**2)
                found[vector] = math.sqrt(low), math.sqrt(high)
            if not met_all and found[vector][0] < epsilon <= found[vector][1]:
                keep.append(row)
        if not keep:
            break
        if len(keep) < len(active):
            chosen = xp.asarray(keep)
            lefts, rights = ([xp.take(x, chosen, axis=0) for x in each] for each in (lefts, rights))
            active, alphas, betas = [active[row] for row in keep], alphas[keep], betas[keep]
    return found


def _next(xp: Any, block: Any, before: list[Any]) -> tuple[Any, np.ndarray]:
    """Return a block's rows, each made orthogonal to its predecessors, and their lengths."""
    for _ in range(2 if before else 0):
        basis = xp.stack(before, axis=1)  # (k, steps, m)
        shares = basis @ block[:, :, None]
        block = block - (xp.matrix_transpose(basis) @ shares)[:, :, 0]
    norms = xp.linalg.vector_norm(block, axis=1)
    lengths = np.asarray([number(norm) for norm in norms])
    return block / xp.where(norms > 0, norms, 1.0)[:, None], lengths[:, None]


def _largest_mass(
    alphas: np.ndarray, betas: np.ndarray, met_all: bool, zero: float
) -> tuple[float, float]:
    """Return bounds on the largest mass of a measure at one point, from its bidiagonal matrix.

    ``alphas`` (n,) and ``betas`` (n,); with ``met_all`` the measure is that of the Ritz values, of
    which those up to ``zero`` are no direction's.
    """
    n = len(alphas)
    lower = np.diag(alphas) + np.diag(betas[:-1], -1)
    jacobi = lower @ lower.T
    nodes, vectors = np.linalg.eigh(jacobi)
    weights = vectors[0] ** 2
    if met_all:
        largest = float(np.max(weights[nodes > zero], initial=0.0))
        return largest, largest
    residuals = alphas[-1] * betas[-1] * np.abs(vectors[-1])
    with np.errstate(divide="ignore", over="ignore"):
        off = np.where(nodes > zero, residuals / (_ONE * nodes), np.inf)
        low = max(0.0, float(np.max(np.sqrt(weights) - off)))
        steps = np.arange(_POINTS) / _POINTS
        points = np.append((nodes[:-1, None] + np.diff(nodes)[:, None] * steps).ravel(), nodes[-1])
        former, current = np.zeros_like(points), np.ones_like(points)
        total = current**2
        off_diagonal = np.append(0.0, np.diag(jacobi, 1))
        for place in range(n - 1):
            rest = (points - jacobi[place, place]) * current - off_diagonal[place] * former
            former, current = current, rest / off_diagonal[place + 1]
            total = total + current**2
    return low**2, min(1.0, _BETWEEN * float(np.max(1 / total)))
