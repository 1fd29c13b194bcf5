"""KL from sums over tiles of logits z and of their difference d, which may be very small.

With p the softmax of z, u = d − c for any c, and φ(u) = e^u − 1 − u, the sums of e, e·u and e·φ(u)
of every tile, each with a c of its own, join to ``KL = log(1 + E_p[φ(d − E_p d)])``.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tunemath.objective.fused.head import LOG2_E

__all__ = ["Moments", "QuickMoments", "Statistics", "excess"]

# e^u stays finite in float32, with room for its sum over a vocabulary.
_FAR = 60.0
# The likeliest token has e = 2^40: e and e^u both keep to float32's range for |u| < 50.
_ROOM = 40.0
# (m, degree): for |u| ≤ m, (e^u − 1 − u) / u² is a polynomial of this degree but for rounding.
_POLYNOMIALS = {
    torch.float32: ((0.05, 3), (0.5, 5), (1.0, 6), (2.0, 8), (4.0, 11)),
    torch.float64: ((0.05, 5), (0.5, 9), (1.0, 11), (2.0, 14), (4.0, 18)),
}


@dataclass
class Statistics:
    """Of each row, (n,) float64."""

    centre: Tensor
    """E[d] under the first model, nats."""
    kl: Tensor
    """KL(first ‖ second), nats."""
    log2_z: Tensor
    """log2 of the first model's normaliser."""
    others: Tensor
    """1 − p of the first model's likeliest token, to within the rounding of 1."""
    far: Tensor
    """Whether the sums overflowed or met an infinity, so that the row has to be done otherwise."""


class Moments:
    """Sums over the tiles of a block, each relative to its own maximum and its own mean of d."""

    def __init__(self, n: int, width: int, like: Tensor) -> None:
        self._scratch = [like.new_empty(n * width) for _ in range(3)]
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
        low = u.amin(1)  # one by one: aminmax of rows takes ten times as long
        excess(u, phi, most=float(torch.maximum(high, -low).amax()))
        sums = phi.mul_(e).sum(1), u.mul_(e).sum(1)
        self._tiles.append((top, total, centre, *sums, high))

    def finish(self) -> Statistics:
        """Join the tiles."""
        top, s, c, a, b, high = (
            torch.stack(one, 1).double() for one in zip(*self._tiles, strict=True)
        )
        return _join(top, s, c, a, b, high)


class QuickMoments:
    """The same sums for u that are not small, in fewer passes: e^u − 1 with the rounding of 1.

    c is d of the row's likeliest token so far. There e^u − 1 is exactly 0, and the rounding of 1
    counts by the share of the other tokens only, as KL itself does.
    """

    def __init__(self, n: int, width: int, like: Tensor) -> None:
        self._scratch = like.new_empty(n * width)
        self._top, self._centre = like.new_full((n,), -math.inf), like.new_zeros(n)
        self._tiles: list[tuple[Tensor, ...]] = []

    def add(self, z: Tensor, d: Tensor) -> None:
        """Take up a tile, and use it up: e = 2^(z − max + 40), Σe, Σe·u and Σe·(e^u − 1)."""
        self._raise(z, d)
        offset = self._top.clamp(min=torch.finfo(z.dtype).min) - _ROOM
        e = z.sub_(offset[:, None]).exp2_()
        u = d.sub_(self._centre[:, None])
        linear = torch.mul(e, u, out=self._scratch[: z.numel()].view(z.shape)).sum(1)
        sums = e.sum(1), linear, u.mul_(LOG2_E).exp2_().sub_(1.0).mul_(e).sum(1)
        self._tiles.append((offset, self._centre.clone(), *sums))

    def _raise(self, z: Tensor, d: Tensor) -> None:
        """Take maximum and centre from the tile's likeliest token in the rows where it leads."""
        new = (z.amax(1) > self._top).nonzero()[:, 0]
        if len(new):
            some = z[new]
            token = some.argmax(1)
            self._top[new], self._centre[new] = some.amax(1), d[new, token]

    def finish(self) -> Statistics:
        """Join the tiles."""
        offset, c, s, b, whole = (
            torch.stack(one, 1).double() for one in zip(*self._tiles, strict=True)
        )
        unit = 2.0**-_ROOM
        a = whole - b
        return _join(offset + _ROOM, s * unit, c, a * unit, b * unit, torch.zeros_like(c))


def _join(top: Tensor, s: Tensor, c: Tensor, a: Tensor, b: Tensor, high: Tensor) -> Statistics:
    """Join the sums of tiles (n, tiles): φ(u + δ) = e^δ φ(u) + φ(δ) + (e^δ − 1) u, δ = c − mean."""
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
    return Statistics(centre, kl, most + torch.log2(total), (total - 1.0) / total, far)


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
