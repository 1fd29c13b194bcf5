"""What a number becomes in a format, and how much of an update is left of it then."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FORMATS", "Kept", "rounded"]

FORMATS = ("float32", "bfloat16", "float16", "nf4", "q4_0")
"""The formats that `rounded` knows."""

_NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
])  # fmt: skip
_NF4_BETWEEN = (_NF4[1:] + _NF4[:-1]) / 2
_NF4_BLOCK, _Q4_BLOCK = 64, 32


def rounded(values: Tensor, form: str) -> Tensor:
    """Return float32 values as a format holds them, in float32.

    ``nf4`` is bitsandbytes' in blocks of 64 with one absolute maximum each (Dettmers et al. 2023,
    https://arxiv.org/abs/2305.14314, appendix E); ``q4_0`` is GGUF's in blocks of 32. Blocks run
    over the elements in their order, so rows that come apart must be whole blocks.
    """
    if form == "nf4":
        return _in_blocks(values, _NF4_BLOCK, _nf4)
    if form == "q4_0":
        return _in_blocks(values, _Q4_BLOCK, _q4_0)
    return values.to(getattr(torch, form)).float()


def _in_blocks(values: Tensor, size: int, one) -> Tensor:
    flat = values.reshape(-1)
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % size)).reshape(-1, size)
    return one(padded).reshape(-1)[: len(flat)].reshape(values.shape)


def _nf4(blocks: Tensor) -> Tensor:
    """Return each number as the nearest of 16 levels times its block's largest magnitude."""
    largest = blocks.abs().amax(-1, keepdim=True)
    scaled = blocks / torch.where(largest > 0, largest, 1.0)
    return _NF4[torch.bucketize(scaled, _NF4_BETWEEN)] * largest


def _q4_0(blocks: Tensor) -> Tensor:
    """Return each number as one of 16 even steps; the scale, a float16, has the largest at −8."""
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = largest / -8
    inverse = torch.where(scale != 0, 1 / scale, 0.0)
    steps = (blocks * inverse + 8.5).trunc().clamp(0, 15)
    return (steps - 8) * scale.half().float()


@dataclass
class Kept:
    """How much of ΔW is left between two rounded tensors, summed over parts.

    With ``m = R(W + ΔW) − R(W)``: `share` is ``⟨m, ΔW⟩ / ‖ΔW‖²``, 1 where all of it is left and 0
    where nothing is, 2 where it was added twice; `error` is ``‖m − ΔW‖ / ‖ΔW‖``.
    """

    along: float = 0.0
    """⟨m, ΔW⟩."""
    update: float = 0.0
    """‖ΔW‖²."""
    rest: float = 0.0
    """‖m − ΔW‖²."""
    moved: float = 0.0
    """‖m‖²."""

    def add(self, moved: Tensor, delta: Tensor) -> None:
        """Count one part: m and ΔW, of one shape, in float32."""
        self.along += _sum(moved * delta)
        self.update += _sum(delta * delta)
        self.rest += _sum((moved - delta) ** 2)
        self.moved += _sum(moved * moved)

    def also(self, other: Kept) -> None:
        """Count what another counted."""
        for name in ("along", "update", "rest", "moved"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def share(self) -> float:
        """⟨m, ΔW⟩ / ‖ΔW‖²; 1 where there is no update to lose."""
        return self.along / self.update if self.update else 1.0

    @property
    def error(self) -> float:
        """‖m − ΔW‖ / ‖ΔW‖; of no update, ‖m‖."""
        return math.sqrt(self.rest / self.update) if self.update else math.sqrt(self.moved)


def _sum(values: Tensor) -> float:
    return float(values.sum(dtype=torch.float64))
