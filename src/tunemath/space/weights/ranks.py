"""Which rank each matrix of an update gets: one for all, what an error needs, or a budget shared.

Let σ_1 ≥ σ_2 ≥ … be a matrix's singular values. Its truncation at rank r keeps the energy
``Σ_{k ≤ r} σ_k² / Σ σ²`` and has the relative error ``√(1 − energy)`` (Eckart and Young 1936).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tunemath.errors import ContractError
from tunemath.space.lowrank import LowRank, low_rank

__all__ = ["RankChoice", "chosen_rank", "share_ranks", "top_values", "truncated"]

_DENSE = 1024  # the smaller side up to which all singular values are quick to have
_START = 64
_PASSES = 8  # within 1e-4 of the least error even where singular values fall slowly
_SMALL = 128  # the smaller side up to which passes save nothing


@dataclass(frozen=True)
class RankChoice:
    """How the ranks are chosen, as the commands' options of the same names.

    ``rank`` is one for all; ``energy`` and ``error`` give each matrix the smallest rank that keeps
    so much of its energy, or has at most that relative error; ``parameters`` is a budget for all
    factors together. Raises `ContractError` for a value that is none.
    """

    by: Literal["rank", "energy", "error", "parameters"]
    value: float

    def __post_init__(self) -> None:
        whole = self.by in ("rank", "parameters")
        good = self.value >= 1 and self.value == int(self.value) if whole else 0 < self.value <= 1
        if not good:
            wanted = "a whole number from 1" if whole else "a number over 0 and at most 1"
            raise ContractError(f"--{self.by} {self.value:g}: expected {wanted}")

    def enough(self, kept: float) -> bool:
        """Return whether a truncation that keeps this share of the energy will do."""
        # Sums of squares carry rounding of about 1e-12.
        if self.by == "energy":
            return kept >= self.value - 1e-12
        return math.sqrt(max(0.0, 1 - kept)) <= self.value


def truncated(matrix: Tensor, choice: RankChoice, rank: int | None = None) -> LowRank:
    """Return the best approximation of a matrix (m, n) at the rank that is chosen for it.

    ``rank`` is what a shared budget gave it. A rank that is known is found in eight passes over the
    matrix, or by the full decomposition where its subspace would fill the matrix. For an energy or
    an error, all singular values are computed where the smaller side is at most 1,024, and twice as
    many until they are enough where it is larger.
    """
    least = min(matrix.shape)
    if choice.by == "rank":
        rank = int(choice.value)
    if rank is not None:
        return low_rank(matrix, min(rank, least), exact=least <= _SMALL, passes=_PASSES)
    found = least if least <= _DENSE else _START
    while True:
        fit = low_rank(matrix, found, passes=_PASSES)
        rank = _smallest(fit, choice)
        if rank is not None or found == least:
            return _cut(fit, rank or found)
        found = min(2 * found, least)


def chosen_rank(values: Tensor, choice: RankChoice) -> int:
    """Return a matrix's rank from all its singular values (k,), descending; 1 of zeros."""
    if choice.by == "rank":
        return min(int(choice.value), len(values))
    kept = (values.double().square().cumsum(0) / values.double().square().sum()).tolist()
    return next((k + 1 for k, share in enumerate(kept) if choice.enough(share)), 1)


def _smallest(fit: LowRank, choice: RankChoice) -> int | None:
    """Return the smallest rank that is enough; None where all that were found are not."""
    rests = _rests(fit)
    return next((k + 1 for k, rest in enumerate(rests) if choice.enough(1 - rest)), None)


def _rests(fit: LowRank) -> np.ndarray:
    """Return (r,): the squared relative error at each rank up to the one that was found."""
    squares = np.asarray(fit.singular_values, np.float64) ** 2
    kept = 1 - fit.relative_error**2
    after = squares[::-1].cumsum()[::-1] - squares
    return fit.relative_error**2 + kept * after / max(squares.sum(), np.finfo(float).tiny)


def _cut(fit: LowRank, rank: int) -> LowRank:
    """Return an approximation's first directions: the best at that rank within its space."""
    if rank == len(fit.singular_values):
        return fit
    rest = float(_rests(fit)[rank - 1])
    bound = math.sqrt(rest + fit.bound**2 - fit.relative_error**2)
    values = fit.singular_values[:rank]
    return LowRank(fit.left[:, :rank], fit.right[:rank], values, math.sqrt(rest), bound)


def top_values(matrix: Tensor, count: int) -> np.ndarray:
    """Return the largest singular values of a matrix (m, n), float64: all where that is quick."""
    least = min(matrix.shape)
    if least <= _DENSE or count >= least:
        return torch.linalg.svdvals(matrix).double().numpy()
    return np.asarray(low_rank(matrix, count, passes=_PASSES).singular_values, np.float64)


def share_ranks(
    values: Mapping[str, Sequence[float]], costs: Mapping[str, int], budget: int
) -> dict[str, int]:
    """Return each matrix's rank, so that the total squared error is least within a budget.

    A further rank of matrix i removes ``σ_{i,r+1}²`` from the total squared error and costs
    ``m_i + n_i`` parameters. The ranks that remove most for a parameter are taken first; since σ
    falls, that is the best choice of all that cost as much, and where all costs are equal it takes
    the largest singular values. A matrix whose next rank no longer fits gets no more.

    ``values`` are singular values, descending; ``costs`` the parameters of one rank.

    >>> share_ranks({"a": [3.0, 2.0, 0.1], "b": [1.0, 0.5]}, {"a": 10, "b": 10}, 30)
    {'a': 2, 'b': 1}
    """
    ranks = dict.fromkeys(values, 0)
    heap = [(-(s[0] ** 2) / costs[name], name) for name, s in values.items() if len(s) and s[0] > 0]
    heapq.heapify(heap)
    while heap:
        _, name = heapq.heappop(heap)
        if costs[name] > budget:
            continue
        budget -= costs[name]
        ranks[name] += 1
        rest = values[name][ranks[name] :]
        if len(rest) and rest[0] > 0:
            heapq.heappush(heap, (-(rest[0] ** 2) / costs[name], name))
    return ranks
