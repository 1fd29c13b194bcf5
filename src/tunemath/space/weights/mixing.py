"""How several models become one: the formulas, on parts of one tensor at a time.

Let W_0 be the base, W_i the models, w_i their weights and δ_i = W_i − W_0.

- linear: ``Σ w_i W_i / Σ w_i`` (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482).
- task: ``W_0 + λ Σ w_i δ_i``; a negative weight subtracts (Ilharco et al. 2023,
  https://arxiv.org/abs/2212.04089).
- slerp: ``[sin((1 − t)θ) W_1 + sin(tθ) W_2] / sin θ`` with θ the angle between the two tensors and
  t = w_2 / (w_1 + w_2) (Shoemake 1985).
- ties: of each δ_i only the share ``density`` of its elements that are largest in magnitude stays;
  an element's sign is that of ``Σ w_i δ_i``, and ``W_0 + λ Σ_S w_i δ_i / Σ_S w_i`` over the models
  S that have this sign there (Yadav et al. 2023, https://arxiv.org/abs/2306.01708).
- dare: each element of δ_i is dropped at random with probability 1 − density and divided by the
  density otherwise, then as task (Yu et al. 2024, https://arxiv.org/abs/2311.03099); dare-ties
  elects signs among what is left, as ties.

Signs are elected, and means taken, with the weights, as mergekit does; with weights of 1 they are
the papers'. In SLERP a tensor has one angle, as a vector of all its elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tunemath.errors import ContractError
from tunemath.storage import hash_bytes

__all__ = [
    "METHODS",
    "Method",
    "Mix",
    "drop_and_rescale",
    "elect",
    "generator",
    "slerp_weights",
    "threshold",
]

Method = Literal["linear", "task", "slerp", "ties", "dare", "dare-ties"]
METHODS: tuple[str, ...] = get_args(Method)
_PARALLEL = 0.9995
_LARGEST = 1e6


@dataclass(frozen=True)
class Mix:
    """A method and its settings. Raises `ContractError` for what has no meaning together."""

    method: Method
    weights: tuple[float, ...]
    density: float = 1.0
    """The share of each δ's elements that stay."""
    scale: float = 1.0
    """λ, on the sum of what the models change."""
    seed: int = 0
    """Of the elements that DARE drops."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ContractError(f"--method {self.method}: expected one of {', '.join(METHODS)}")
        if not all(abs(weight) <= _LARGEST for weight in (*self.weights, self.scale)):
            raise ContractError(
                f"weights and scale: expected numbers up to {_LARGEST:,.0f} in size"
            )
        if not 0 < self.density <= 1:
            raise ContractError(f"--density {self.density:g}: expected over 0 and at most 1")
        if self.density < 1 and not self.sparse:
            raise ContractError(f"--density is for ties and dare; {self.method} keeps everything")
        if self.scale != 1 and self.method in ("linear", "slerp"):
            raise ContractError(f"--scale is for methods on task vectors; {self.method} has none")
        if self.method == "slerp" and len(self.weights) != 2:
            raise ContractError(f"slerp is between two models; {len(self.weights)} were given")
        if self.method in ("linear", "slerp") and abs(sum(self.weights)) < 1e-8:
            raise ContractError(f"the weights {list(self.weights)} of {self.method} sum to 0")
        if self.method in ("slerp", "ties", "dare-ties") and min(self.weights) < 0:
            raise ContractError(f"{self.method} takes no negative weight; task subtracts")

    @property
    def sparse(self) -> bool:
        """Whether the method drops elements."""
        return self.method in ("ties", "dare", "dare-ties")

    @property
    def on_deltas(self) -> bool:
        """Whether the method works on what the models change of a base."""
        return self.method not in ("linear", "slerp")

    @property
    def fraction(self) -> float:
        """SLERP's t: 0 is the first model, 1 the second."""
        return self.weights[1] / sum(self.weights)

    def summed(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return what a part of the models' tensors, or of their trimmed δ, becomes.

        Of linear, the mean; of task and dare, ``λ Σ w_i δ_i``; of ties, λ times the elected mean.
        """
        if self.method in ("ties", "dare-ties"):
            return self.scale * elect(tensors, self.weights)
        shares = self.weights
        if self.method == "linear":
            shares = tuple(weight / sum(self.weights) for weight in self.weights)
        total = torch.zeros_like(tensors[0])
        for share, tensor in zip(shares, tensors, strict=True):
            total += share * tensor
        return total * self.scale if self.on_deltas else total


def threshold(magnitudes: Tensor, density: float) -> float:
    """Return the least magnitude that is kept: that of element ``max(1, ⌊density · n⌋)``.

    Elements of equal magnitude are all kept.

    >>> threshold(torch.tensor([0.1, 0.4, 0.2, 0.3]), 0.5)
    0.30000001192092896
    """
    flat = magnitudes.reshape(-1)
    keep = max(1, int(density * len(flat)))
    if not len(flat) or keep == len(flat):
        return 0.0
    return float(flat.kthvalue(len(flat) - keep + 1).values)


def elect(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted mean over the models whose change has the elected sign, elementwise.

    The sign is that of the weighted sum; where that is 0, the positive. Where no model has it, 0.

    >>> elect([torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 3.0])], [1.0, 1.0]).tolist()
    [2.0, 2.0]

    Source: Yadav et al. 2023, section 3; weights as in mergekit.
    """
    votes = torch.zeros_like(deltas[0])
    for weight, delta in zip(weights, deltas, strict=True):
        votes += weight * delta
    sign = torch.where(votes >= 0, 1.0, -1.0)
    total, share = torch.zeros_like(votes), torch.zeros_like(votes)
    for weight, delta in zip(weights, deltas, strict=True):
        agrees = torch.sign(delta) == sign
        total += weight * delta * agrees
        share += weight * agrees
    return total / torch.where(share != 0, share, 1.0)


def drop_and_rescale(delta: Tensor, density: float, random: torch.Generator) -> Tensor:
    """Return δ with each element 0 with probability 1 − density, else divided by the density.

    The expectation of every element stays. Source: Yu et al. 2024, equation 3.
    """
    kept = torch.rand(delta.shape, generator=random) < density
    return delta * kept / density


def generator(seed: int, name: str, model: int) -> torch.Generator:
    """Return the random numbers of one tensor of one model, whatever the order they are read in."""
    mixed = int(hash_bytes(f"{seed}/{name}/{model}".encode())[:15], 16)
    return torch.Generator().manual_seed(mixed)


def slerp_weights(first: float, second: float, product: float, t: float) -> tuple[float, float]:
    """Return the two tensors' factors in SLERP, from ‖W_1‖, ‖W_2‖, ⟨W_1, W_2⟩ and t.

    Where they are parallel to about 2°, or one is 0, those of linear interpolation.

    >>> [round(each, 4) for each in slerp_weights(1.0, 1.0, 0.0, 0.5)]
    [0.7071, 0.7071]
    """
    cosine = product / (first * second) if first and second else 1.0
    if abs(cosine) > _PARALLEL:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
