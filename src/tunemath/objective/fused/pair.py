"""Two models over one vocabulary: logits of the first, and the second's difference from them.

KL(first ‖ second) is a sum over the difference d of the logits, and as little as d may be, it has
to keep its digits: it comes from the difference of the states and of the heads,

    x′ − x = W′ (h′ − h) + (W′ − W) h + (b′ − b),

never from two logits, unless the heads differ and the quick form is asked for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tunemath.objective.fused.head import LOG2_E, Head, Tile

__all__ = ["Pair"]

# Below it tanh(a + δ) − tanh a is formed without subtracting.
_NEAR = 0.5


class Pair:
    """Rows of two models, ready for tile by tile of (z·log2 e, d, slope of the tuned logits)."""

    def __init__(
        self, first: tuple[Head, Tensor], second: tuple[Head, Tensor], shared: bool, quick: bool
    ) -> None:
        # d is in nats, where z is in powers of two; under a soft-cap both are x / cap.
        self._nats = 1.0 if first[0].soft_cap else math.log(2)
        self.first = first[0]
        self.second = second[0].times(self._nats) if quick else second[0]
        self.shared, self.quick = shared, quick
        self.factor, self.other = self.first.prepare(first[1]), self.second.prepare(second[1])
        self._scratch: Tensor | None = None
        if not quick:
            self._delta = (second[1].to(self.first.dtype) - first[1].to(self.first.dtype)).mul_(
                self.first.unit * self._nats
            )

    def tile(
        self, parts: tuple[Tile, Tile], z: Tensor, d: Tensor, slope: Tensor | None, last: bool
    ) -> None:
        """Fill z and d (n, tile), and the slope dz/dx of the second model (``last``) or first."""
        self.first.products(self.factor, parts[0], z)
        if self.quick:
            self.second.products(self.other, parts[1], d).sub_(z, alpha=self._nats)
        else:
            self._difference(parts, d)
        cap = self.first.soft_cap
        if cap is None:
            return
        gone = self.first.impossible(z)
        t, end = torch.tanh(z), torch.tanh(z + d)
        # tanh(a + δ) − tanh a = w (1 − t²) / (1 + t w) with w = tanh δ, for δ so small that the
        # difference of the two would lose its digits.
        w = torch.tanh(d)
        room = torch.addcmul(torch.ones_like(t), t, w).clamp_(min=_NEAR)
        gap = torch.where(d.abs() < _NEAR, w * (1.0 - t * t) / room, end - t)
        if slope is not None:
            end = end if last else t
            torch.mul(end, end, out=slope).neg_().add_(1.0)
        torch.mul(gap, cap, out=d)
        torch.mul(t, cap * LOG2_E, out=z)
        if gone is not None:
            z.masked_fill_(gone, -math.inf)

    def _difference(self, parts: tuple[Tile, Tile], d: Tensor) -> None:
        one, two = parts
        torch.mm(self._delta, two.weight.t(), out=d)
        bias = None if self.shared else self._bias(one)
        if bias is not None:
            d.add_(bias, alpha=self.first.unit * self._nats)
        if not self.shared:
            d.addmm_(self.factor[0], self._gap(one.weight, two.weight).t(), alpha=self._nats)
        sides = ((self.factor, one, -self._nats), (self.other, two, self._nats))
        for (_, low), part, sign in sides:
            if low is not None and part.lora is not None:
                d.addmm_(low, part.lora.t(), alpha=sign)

    def _gap(self, one: Tensor, two: Tensor) -> Tensor:
        """Return W′ − W of a tile, in memory that the next tile takes over."""
        if self._scratch is None:
            self._scratch = torch.empty_like(one)
        return torch.sub(two, one, out=self._scratch[: len(one)])

    def _bias(self, part: Tile) -> Tensor | None:
        """Return b′ − b of the tile's tokens; the difference comes before any other rounding."""
        one, two = (
            None if form.bias is None else form.bias[part.lo : part.hi].to(form.dtype)
            for form in (self.first, self.second)
        )
        if one is None or two is None:
            return two if one is None else -one
        return two - one
