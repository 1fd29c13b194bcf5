"""Two models over one vocabulary: logits of the first, and the second's difference from them.

KL(first ‖ second) is a sum over the difference d of the logits, and as little as d may be, it has
to keep its digits: it comes from the difference of the states and of the heads,

    x′ − x = W′ (h′ − h) + (W′ − W) h + (b′ − b),

never from two logits, unless the heads differ and the quick form is asked for.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunemath.objective.fused.head import LOG2_E, Head, Tile

__all__ = ["Moments", "Pair", "Statistics", "excess"]

# e^u stays finite in float32, with room for its sum over a vocabulary.
_FAR = 60.0
# Below it tanh(a + δ) − tanh a is formed without subtracting.
_NEAR = 0.5
# (m, degree): for |u| ≤ m, (e^u − 1 − u) / u² is a polynomial of this degree but for rounding.
_POLYNOMIALS = {
    torch.float32: ((0.05, 3), (0.5, 5), (1.0, 6), (2.0, 8), (4.0, 11)),
    torch.float64: ((0.05, 5), (0.5, 9), (1.0, 11), (2.0, 14), (4.0, 18)),
}


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


@dataclass
class Statistics:
    """Of each row, (n,) float64."""

    centre: Tensor
    """E[d] under the first model, nats."""
    kl: Tensor
    """KL(first ‖ second), nats."""
    log2_z: Tensor
    """log2 of the first model's normaliser."""
    far: Tensor
    """Whether the sums overflowed or met an infinity, so that the row has to be done otherwise."""


class Moments:
    """Sums over the tiles of a block, each relative to its own maximum and its own mean of d.

    ``quick`` ones form e^u − 1 − u as it stands, with the rounding of 1: for u that is not small.
    """

    def __init__(self, n: int, width: int, like: Tensor, *, quick: bool) -> None:
        self._scratch = [like.new_empty(n * width) for _ in range(3)]
        self._quick = quick
        self._tiles: list[tuple[Tensor, ...]] = []

    def add(self, z: Tensor, d: Tensor) -> None:
        """Take up a tile: e = 2^(z − max), S = Σe, c = Σe·d / S, u = d − c, Σe·φ(u), Σe·u."""
        e, u, phi = (one[: z.numel()].view(z.shape) for one in self._scratch)
        top = z.amax(1).clamp_(min=torch.finfo(z.dtype).min)
        torch.sub(z, top[:, None], out=e).exp2_()
        total = e.sum(1)
        # Products go into scratch: memory that is new for every tile would cost more than they do.
        centre = torch.mul(e, d, out=u).sum(1) / total.clamp(min=torch.finfo(z.dtype).tiny)
        torch.sub(d, centre[:, None], out=u)
        high = u.amax(1)
        if self._quick:
            torch.mul(u, LOG2_E, out=phi).exp2_().sub_(1.0).sub_(u)
        else:
            low = u.amin(1)  # one by one: aminmax of rows takes ten times as long
            excess(u, phi, most=float(torch.maximum(high, -low).amax()))
        sums = phi.mul_(e).sum(1), u.mul_(e).sum(1)
        self._tiles.append((top, total, centre, *sums, high))

    def finish(self) -> Statistics:
        """Join the tiles: with δ = c − mean, φ(u + δ) = e^δ φ(u) + φ(δ) + (e^δ − 1) u."""
        top, s, c, a, b, high = (
            torch.stack(one, 1).double() for one in zip(*self._tiles, strict=True)
        )
        most = top.amax(1)
        share = torch.exp2(top - most[:, None])
        total = (share * s).sum(1)
        weights = share / total[:, None]
        empty = s == 0
        c, a, b = (torch.where(empty, 0.0, one) for one in (c, a, b))
        centre = (weights * (c * s + b)).sum(1)
        shift = c - centre[:, None]
        joined = torch.exp(shift) * a + _excess64(shift) * s + torch.expm1(shift) * b
        kl = torch.log1p((weights * joined).sum(1)).clamp_(min=0.0)
        broken = ~torch.isfinite(joined).all(1) | ~torch.isfinite(kl)
        far = broken | (torch.where(empty, 0.0, high + shift).amax(1) > _FAR)
        return Statistics(centre, kl, most + torch.log2(total), far)


def excess(u: Tensor, out: Tensor, *, most: float) -> Tensor:
    """Write φ(u) = e^u − 1 − u into ``out``, with the digits of its dtype; ``most`` is max |u|."""
    polynomials = _POLYNOMIALS[u.dtype]
    for limit, degree in polynomials:
        if most <= limit:
            return _polynomial(u, out, *_coefficients(limit, degree))
    limit, degree = polynomials[1]
    close = u.abs() < limit
    large = torch.mul(u, LOG2_E, out=out).exp2_().sub_(1.0).sub_(u).clone()
    near = _polynomial(u, out, *_coefficients(limit, degree))
    return torch.where(close, near, large, out=out)


@functools.cache
def _coefficients(limit: float, degree: int) -> tuple[float, ...]:
    """Return the polynomial through (e^u − 1 − u) / u² at Chebyshev's points, highest first."""

    def ratio(u: np.ndarray) -> np.ndarray:
        whole = _excess64(torch.from_numpy(u)).numpy()
        return np.where(u == 0, 0.5, whole / np.where(u == 0, 1.0, u) ** 2)

    chebyshev = np.polynomial.Chebyshev.interpolate(ratio, degree, (-limit, limit))
    found = chebyshev.convert(kind=np.polynomial.Polynomial, domain=(-1, 1), window=(-1, 1))
    return tuple(float(one) for one in found.coef[::-1])


def _polynomial(u: Tensor, out: Tensor, first: float, second: float, *rest: float) -> Tensor:
    """Write u² (first uⁿ + second uⁿ⁻¹ + …) into ``out``."""
    torch.mul(u, first, out=out).add_(second)
    for coefficient in rest:
        torch.addcmul(u.new_tensor(coefficient), out, u, out=out)
    return out.mul_(u).mul_(u)


def _excess64(x: Tensor) -> Tensor:
    """Return e^x − 1 − x in float64."""
    near = x.abs() < 0.1
    small = torch.where(near, x, 0.0)
    series = torch.full_like(x, 1 / math.factorial(12))
    for k in range(11, 1, -1):
        series = series * small + 1 / math.factorial(k)
    return torch.where(near, small * small * series, torch.expm1(x) - x)
