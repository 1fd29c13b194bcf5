"""A model's head: tiles of its logits, and products with their gradient.

The logits of a row h are ``z = cap·tanh(x / cap)`` with ``x = scale·(W h + s·B A h + b)``; without
a soft-cap z = x. Everything here works in powers of two, ``z·log2 e``: 2^x costs a third of e^x.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunemath.errors import ShapeError

__all__ = ["LOG2_E", "Head", "Lora", "Tile", "check_head"]

LOG2_E = 1 / math.log(2)
_HALF = (torch.bfloat16, torch.float16)
# A tensor would be read once, and get no gradient.
_PLAIN = ", and no tensor: it has no gradient here"


class Lora(NamedTuple):
    """A low-rank update ``scale·B A`` of the head: A (r, D), B (V, r)."""

    A: Tensor
    B: Tensor
    scale: float = 1.0


class Tile(NamedTuple):
    """Some neighbouring tokens of the vocabulary: ids lo … hi−1, their rows of W (and of B)."""

    lo: int
    hi: int
    weight: Tensor
    lora: Tensor | None


class Head:
    """The head with its options, and the dtype in which it is multiplied.

    Half-precision rows and heads of one dtype are multiplied in it, as the model's own head would
    be, wherever the machine can; sums are float32. Otherwise each tile of the head becomes float32
    (float64 for float64 rows) when its turn comes: there is never a copy of the whole head.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        lora: Lora | None,
        scale: float,
        soft_cap: float | None,
        rows_dtype: torch.dtype,
    ) -> None:
        self.weight, self.bias, self.lora = weight, bias, lora
        self.scale, self.soft_cap = scale, soft_cap
        self.vocab, self.width = weight.shape
        self.dtype = torch.float64 if rows_dtype == torch.float64 else torch.float32
        self.native = rows_dtype == weight.dtype and rows_dtype in _HALF and _multiplies(weight)
        self.unit = scale * LOG2_E if soft_cap is None else scale / soft_cap

    def prepare(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return rows (N, D) as the factor of every product, and A h (N, r) in front of B."""
        exact = rows.to(self.dtype)
        low = None if self.lora is None else exact @ self.lora.A.to(self.dtype).T
        if low is not None:
            low = low * (self.lora_scale * self.unit)
        return (rows if self.native else exact * self.unit), low

    def times(self, factor: float) -> Head:
        """Return the same head, whose products are in another unit."""
        other = copy.copy(self)
        other.unit = self.unit * factor
        return other

    @property
    def lora_scale(self) -> float:
        """The factor of B A; 0 without LoRA."""
        return 0.0 if self.lora is None else float(self.lora.scale)

    def tiles(self, width: int) -> Iterator[Tile]:
        """Cut the vocabulary into tiles, each of at most ``width`` tokens."""
        for lo in range(0, self.vocab, width):
            hi = min(lo + width, self.vocab)
            weight = self.weight[lo:hi]
            low = None if self.lora is None else self.lora.B[lo:hi].to(self.dtype)
            yield Tile(lo, hi, weight if self.native else weight.to(self.dtype), low)

    def products(self, factor: tuple[Tensor, Tensor | None], tile: Tile, out: Tensor) -> Tensor:
        """Write ``z·log2 e`` (or x / cap, under a soft-cap) of the tile's tokens into ``out``."""
        rows, low = factor
        if self.native:
            # Into float32 first: bfloat16 times a number is rounded to bfloat16 once more.
            out.copy_(_half_product(rows, tile.weight.t())).mul_(self.unit)
        else:
            torch.mm(rows, tile.weight.t(), out=out)
        if low is not None and tile.lora is not None:
            out.addmm_(low, tile.lora.t())
        if self.bias is not None:
            out.add_(self.bias[tile.lo : tile.hi].to(self.dtype), alpha=self.unit)
        return out

    def cap(self, out: Tensor, slope: Tensor | None = None) -> Tensor:
        """Turn x / cap into ``z·log2 e`` in place; ``slope`` receives dz/dx = 1 − tanh²."""
        if self.soft_cap is None:
            return out
        gone = self.impossible(out)
        out.tanh_()
        if slope is not None:
            torch.mul(out, out, out=slope).neg_().add_(1.0)
        out.mul_(self.soft_cap * LOG2_E)
        return out if gone is None else out.masked_fill_(gone, -math.inf)

    def impossible(self, x: Tensor) -> Tensor | None:
        """Return where a bias of −∞ makes a token impossible: no cap makes it possible again."""
        return None if self.bias is None else x == -math.inf

    def targets(self, rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return W_y (N, D), the slope dz_y/dx (N,) under a soft-cap, and z_y·log2 e (N,)."""
        chosen = self.weight[ids].to(self.dtype)
        if self.lora is not None:
            low = self.lora.B[ids].to(self.dtype) @ self.lora.A.to(self.dtype)
            chosen = chosen.add_(low, alpha=self.lora_scale)
        x = (rows.to(self.dtype) * chosen).sum(-1)
        if self.bias is not None:
            x = x + self.bias[ids].to(self.dtype)
        x = x * self.unit
        slope = None if self.soft_cap is None else torch.empty_like(x)
        return chosen, slope, self.cap(x, slope)

    def add_rows(self, total: Tensor, low: Tensor | None, weights: Tensor, tile: Tile) -> None:
        """Add Σ_v weights_v W_v to ``total`` (N, D), and Σ_v weights_v B_v to ``low`` (N, r)."""
        if self.native:
            total.add_(self._inner(weights, tile.weight))
        else:
            total.addmm_(weights, tile.weight)
        if low is not None and tile.lora is not None:
            low.addmm_(weights, tile.lora)

    def add_outer(self, total: Tensor, tile: Tensor, rows: Tensor, *, fresh: bool) -> None:
        """Add Σ_n tile_n ⊗ rows_n to ``total`` (tile, D), or begin it when ``fresh``."""
        if self.native:
            product = self._outer(tile, rows)
            total.copy_(product) if fresh else total.add_(product)
        elif fresh:
            torch.mm(tile.t(), rows, out=total)
        else:
            total.addmm_(tile.t(), rows)

    def _inner(self, weights: Tensor, matrix: Tensor) -> Tensor:
        """Return Σ_v weights_v matrix_v (N, D) from half-precision factors."""
        half = matrix.dtype
        if half != torch.float16:
            return _half_product(weights.to(half), matrix)
        most = _largest(weights)
        return _half_product((weights / most).to(half), matrix) * most

    def _outer(self, tile: Tensor, rows: Tensor) -> Tensor:
        """Return Σ_n tile_n ⊗ rows_n (tile, D) from half-precision factors."""
        half = self.weight.dtype
        if half != torch.float16:
            return _half_product(tile.to(half).t(), rows.to(half))
        most = _largest(tile)
        rows = rows * most
        peak = _largest(rows).amax(0, keepdim=True)
        return _half_product((tile / most).to(half).t(), (rows / peak).to(half)) * peak

    def join(self, total: Tensor, low: Tensor | None) -> Tensor:
        """Return ``total`` with the low-rank part multiplied out: the rows' own gradient."""
        if low is None or self.lora is None:
            return total
        return total.addmm_(low, self.lora.A.to(self.dtype), alpha=self.lora_scale)


def _multiplies(weight: Tensor) -> bool:
    """Return whether the machine multiplies this half-precision dtype natively."""
    if weight.device.type == "cuda":
        return True
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return False
    cpu: Any = torch.cpu
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()


def _largest(x: Tensor) -> Tensor:
    """Return the largest size in each row of x (n, k), (n, 1), and above 0.

    Divided by it, e^z beside e^(z of the target) stays in float16's range of 6e-8 to 65504.
    """
    return x.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny)


def _half_product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of two half-precision matrices, in float32 where the library offers it."""
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right)


def check_head(
    head: Tensor,
    bias: Tensor | None,
    lora: Lora | None,
    scale: float,
    soft_cap: float | None,
    chunk: int | None,
) -> None:
    """Refuse a head whose parts do not go together, and options without meaning."""
    if not isinstance(head, Tensor) or head.ndim != 2 or not head.is_floating_point():
        given = "no tensor"
        if isinstance(head, Tensor):
            given = f"shape {tuple(head.shape)} and dtype {head.dtype}"
        raise ShapeError(
            f"head has {given}; expected floating-point (V, D), the weight of the output layer"
        )
    if 0 in head.shape:
        raise ShapeError(f"head has shape {tuple(head.shape)}; expected one token or more")
    vocab, width = head.shape
    if bias is not None and (not isinstance(bias, Tensor) or bias.shape != (vocab,)):
        given = f"shape {tuple(bias.shape)}" if isinstance(bias, Tensor) else "no tensor"
        raise ShapeError(f"bias has {given}; expected ({vocab},), as head has")
    if lora is not None:
        if not isinstance(lora, Lora):
            raise ShapeError(f"lora is {type(lora).__name__}; expected Lora(A, B, scale)")
        rank = lora.A.shape[0]
        if lora.A.shape != (rank, width) or lora.B.shape != (vocab, rank):
            raise ShapeError(
                f"lora has A {tuple(lora.A.shape)} and B {tuple(lora.B.shape)}; expected (r, "
                f"{width}) and ({vocab}, r) for a head {tuple(head.shape)}"
            )
        if not isinstance(lora.scale, Real) or not math.isfinite(lora.scale):
            raise ValueError(f"scale of lora is {lora.scale!r}; expected a finite number{_PLAIN}")
    for name, value in (("scale", scale), ("soft_cap", soft_cap)):
        if value is not None and not (isinstance(value, Real) and 0 < value < math.inf):
            raise ValueError(f"{name} is {value!r}; expected a number above 0{_PLAIN}")
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"chunk is {chunk!r}; expected how many logits may be held at once")
