"""By how much two correct computations may differ: from dtype, size and conditioning.

Let u = eps / 2 be the unit roundoff. A bound here is what theory gives for *any* order of the sums,
times a small factor that is stated; it is never what one processor gave.

- N. Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd edition 2002: γ_n (3.1), a
  product of matrices (3.13), the backward error of a decomposition (19, 20).
- N. Higham and T. Mary 2019, *A new approach to probabilistic rounding error analysis*: roundings
  that are independent add up as √n, not as n.
- P.-Å. Wedin 1972: by how much singular spaces turn. Å. Björck and G. Golub 1973: angles.
- Pinsker's inequality: ½ ‖p − q‖₁² ≤ KL.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "cut", "decomposition", "dot", "eps", "kl", "network", "product", "rounded", "subspace"
]  # fmt: skip

_STABLE = 4
"""What a stable decomposition loses, in √max(m, n) eps: LAPACK's "modest" factor."""
_DEEP = 8
"""What norms, softmax and residuals add to a chain of products."""


def eps(dtype: Any) -> float:
    """Return the distance from 1 to the next number of a dtype of torch or NumPy."""
    info = torch.finfo(dtype) if isinstance(dtype, torch.dtype) else np.finfo(dtype)
    return float(info.eps)


def dot(terms: int, dtype: Any) -> float:
    """Return γ_n = n u / (1 − n u): a sum of n products is off by γ_n Σ|x y| at most."""
    least = terms * eps(dtype) / 2
    return least / (1 - least)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the bound γ_k |A| |B| of each entry of a product, (m, k) by (k, n)."""
    return dot(a.shape[-1], a.dtype) * (a.abs().double() @ b.abs().double())


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return by how much rounding to a dtype moves each number: u |x|, or half the last step."""
    info = torch.finfo(dtype)
    return info.eps / 2 * values.abs().double().clamp(min=info.tiny)


def decomposition(matrix: Any, dtype: Any = None) -> float:
    """Return ‖E‖₂, where the computed singular values and vectors are exactly those of M + E.

    4 √max(m, n) eps σ₁ (Higham, with independent roundings). By Weyl no singular value is off by
    more. ``dtype`` is the one that was computed in, if not the matrix's own.
    """
    m = torch.as_tensor(matrix)
    largest = float(torch.linalg.matrix_norm(m.double(), 2))
    return _STABLE * math.sqrt(max(m.shape)) * eps(dtype or m.dtype) * largest


def cut(matrix: Any, rank: int, error: float) -> float:
    """Return by how much the nearest matrix of a rank may move when M moves by ``error``.

    With P and P' the projections on the first singular vectors, before and after,
    P'(M + E) − P M = P' E + (P' − P) M, and by Wedin ‖P' − P‖ ≤ ‖E‖ / gap:
    ‖E‖ (1 + σ₁ / (σ_r − σ_{r+1} − ‖E‖)). Where next to nothing is cut off, both are within
    σ_{r+1} + ‖E‖ of M (Eckart and Young). The bound is one of each entry too.
    """
    values = [*torch.linalg.svdvals(torch.as_tensor(matrix).double()).tolist(), 0.0]
    if values[rank] <= error:
        return 2 * (values[rank] + error)
    gap = values[rank - 1] - values[rank] - error
    assert gap > 0, "the gap is within the rounding: no cut of this rank is determined"
    return error * (1 + values[0] / gap)


def network(values: Tensor, *, layers: int, width: int, dtype: Any = torch.float32) -> float:
    """Return by how much a number that a network computes in two ways may differ.

    A layer is six products in a row, of at most ``width`` terms each, and the head is one more:
    2 · 8 √((6 L + 1) n) u max|z|. For gradients it holds relative to the largest of them.
    """
    terms = (6 * layers + 1) * width
    return 2 * _DEEP * math.sqrt(terms) * eps(dtype) / 2 * float(values.abs().max())


def kl(nats: Any, logits: float) -> Any:
    """Return by how much a KL may move when no logit of either side moves by more than ``logits``.

    The slopes are q − p for the one side and p (log p/q − KL) for the other. The first sums to
    √(2 KL) at most by Pinsker, the second is the standard deviation of log p/q, √(2 KL) to first
    order; the second order is the square of what the logits moved.
    """
    return 2 * logits * np.sqrt(2 * np.asarray(nats)) + logits**2


def subspace(*matrices: Any) -> float:
    """Return by how much an angle between column spaces may be off: 4 √m eps Σ κ(M)."""
    whole = [torch.as_tensor(np.asarray(matrix)) for matrix in matrices]
    return sum(
        _STABLE * math.sqrt(len(m)) * eps(m.dtype) * float(torch.linalg.cond(m.double()))
        for m in whole
    )
