"""Entropy from hidden states, without the logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tunemath.objective.fused.function import Budget, apply
from tunemath.objective.fused.head import Head, Lora, check_head
from tunemath.objective.fused.kept import KeptRule
from tunemath.objective.fused.rows import eager, select, spread
from tunemath.objective.fused.scan import tile_width

__all__ = ["linear_entropy"]

# −∞ becomes this many powers of two below the highest logit: 2^x is 0 there, and x·2^x no NaN.
_FLOOR = -1e4


@eager
def linear_entropy(
    hidden: Tensor,
    head: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    lora: Lora | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Return the entropy of the next-token distribution at each selected position.

    Let p be the softmax of the logits z of `linear_cross_entropy`: ``−Σ_v p_v log p_v``, with
    0·log 0 = 0.

    ``hidden`` (…, D); ``head`` (V, D); ``mask`` (…) of booleans or 0/1, all when None; the options
    are those of `linear_cross_entropy`. Returns (…) nats, from 0 to log V, and 0 where the mask is
    off.

    Values take one product, values and gradient by ``hidden`` two; where the head trains the
    logits are made again in the backward pass.

    >>> h, W = torch.tensor([[0.0, 1.0], [9.0, 0.0]]), torch.eye(2)
    >>> [round(float(one), 4) for one in linear_entropy(h, W)]
    [0.5822, 0.0012]

    Source: Shannon 1948; the gradient is ``dH/dz_v = −p_v (log p_v + H)``.
    """
    check_head(head, bias, lora, scale, soft_cap, chunk)
    rows = select(hidden, mask, head)
    form = Head(head, bias, lora, scale, soft_cap, hidden.dtype)
    return spread(apply(_Entropy(form, chunk), rows.hidden), rows)


class _Entropy(KeptRule):
    """H = log S − E[log e], with e_v = exp(z_v − max z): both parts are at least 0."""

    def stream(self, hidden: Tensor, rows: slice) -> Tensor:
        return self._run(hidden[rows], keep=False)[0]

    def keep(self, hidden: Tensor, rows: slice) -> tuple[Tensor, list[Tensor]]:
        entropy, top, log_s, tiles, slopes = self._run(hidden[rows], keep=True)
        shift = (entropy - log_s)[:, None].to(self.form.dtype)
        for k, tile in enumerate(tiles):
            log_e = tile.sub_(top[:, None]).clamp_(min=_FLOOR)
            # dH/dz = −p (log p + H), with log p = ln 2·log2 e − log S.
            p = torch.exp2(log_e).mul_(torch.exp(-log_s)[:, None].to(log_e.dtype))
            log_e.mul_(math.log(2)).add_(shift).mul_(p).neg_()
            if slopes:
                log_e.mul_(slopes[k])
        return entropy.to(self.form.dtype), tiles

    def _run(
        self, hidden: Tensor, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Return entropies and log S (float64), the highest z·log2 e, and the tiles if kept."""
        form, n = self.form, len(hidden)
        factor = form.prepare(hidden)
        width = tile_width(n, form, Budget(self.chunk, form).tile)
        most, rest, inner, tiles, slopes = [], [], [], [], []
        room = [hidden.new_empty(n * width, dtype=form.dtype) for _ in range(2)]
        for part in form.tiles(width):
            tile = hidden.new_empty(n, part.hi - part.lo, dtype=form.dtype)
            slope = torch.empty_like(tile) if keep and form.soft_cap is not None else None
            form.cap(form.products(factor, part, tile), slope)
            m, highest = tile.max(1)
            m = m.clamp_(min=torch.finfo(form.dtype).min)
            log_e, e = (one[: tile.numel()].view(tile.shape) for one in room)
            torch.sub(tile, m[:, None], out=log_e).clamp_(min=_FLOOR)
            torch.exp2(log_e, out=e)
            # The maximum's own 1 is counted apart: beside it a small rest would lose its digits.
            e.scatter_(1, highest[:, None], 0.0)
            most.append(m)
            rest.append(e.sum(1))
            inner.append(e.mul_(log_e).sum(1))
            if keep:
                tiles.append(tile)
            if slope is not None:
                slopes.append(slope)
        m, s, t = (torch.stack(one, 1).double() for one in (most, rest, inner))
        top = m.amax(1)
        below = m - top[:, None]
        share = torch.exp2(below)
        s_rest = (share * s).sum(1) + (share.sum(1) - 1.0)
        t_all = (share * (t + below * (1.0 + s))).sum(1)
        log_s = torch.log1p(s_rest)
        entropy = log_s - math.log(2) * t_all / (1.0 + s_rest)
        return entropy, top.to(form.dtype), log_s, tiles, slopes
