"""One pass over the vocabulary: the sums that cross-entropy and its gradient are made of.

Let z be the logits of a row, y its target and r a reference. With ``e_v = exp(z_v − r)``

    log p_y = −log(1 + Σ_{v≠y} e_v)          for r = z_y,
    dnll/dh = (Σ_{v≠y} e_v W_v − s W_y) / (1 + s),   s = Σ_{v≠y} e_v.

Nothing in the sums has to wait for the normaliser, so a tile of logits is made, used for both
products while it is in the cache, and forgotten: loss and gradient of a frozen head cost two
products and no (N, V) array. As the target's own term is 1 and never added, a token predicted
with p = 1 − 1e-9 keeps its loss of 1e-9 in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tunemath.objective.fused.head import LOG2_E, Head

__all__ = ["Room", "Sums", "scan", "tile_width"]

# Above it, e^z W could overflow in float32: such rows are scanned again from their maximum.
_FAR = 1e30
_NARROWEST, _HEAD = 256, 512


class Room(NamedTuple):
    """Where the tiles of a scan's N rows wait: that of the tokens from lo at ``flat[lo·step:]``."""

    flat: Tensor
    step: int
    """Numbers a token, N or more."""


@dataclass
class Sums:
    """What a scan of N rows leaves: plain numbers a row, and the products asked for."""

    others: Tensor
    """Σ_{v≠y} e_v, (N,) float64."""
    own: Tensor
    """e_y = exp(z_y − r), (N,) float64; 1 for r = z_y."""
    target: Tensor
    """z_y in nats, (N,) float64."""
    reference: Tensor
    """r in nats, (N,) float64."""
    chosen: Tensor
    """W_y, (N, D)."""
    slope: Tensor | None
    """dz_y/dx, (N,); None without a soft-cap."""
    total: Tensor | None = None
    """Σ_v z_v, (N,) float64, for label smoothing."""
    rows: Tensor | None = None
    """Σ_{v≠y} e_v (dz_v/dx) (W + s B A)_v, (N, D)."""
    even: Tensor | None = None
    """Σ_v (dz_v/dx) (W + s B A)_v, (N, D), or (D,) without a soft-cap: for label smoothing."""
    tiles: list[Tensor] | None = None
    """e_v dz_v/dx tile by tile, 0 at the target; (N, tile) each."""
    slopes: list[Tensor] | None = None
    """dz_v/dx tile by tile, for label smoothing under a soft-cap."""


def tile_width(rows: int, head: Head, chunk: int) -> int:
    """Return how many tokens a tile may have: ``chunk`` logits, and about as much of the head."""
    of_head = max(_HEAD, chunk // head.width)
    width = max(_NARROWEST, min(chunk // max(rows, 1), of_head))
    return min(head.vocab, width // 64 * 64)


def scan(
    head: Head,
    hidden: Tensor,
    ids: Tensor,
    *,
    chunk: int,
    gradient: bool = False,
    smoothing: bool = False,
    keep: Room | None = None,
) -> Sums:
    """Return the sums of N rows ``hidden`` (N, D) whose targets ``ids`` (N,) are sorted.

    ``gradient`` asks for the product with the head, ``keep`` is room for the tiles themselves
    and ``smoothing`` asks for what label smoothing adds.
    """
    chosen, slope, target = head.targets(hidden, ids)
    ones = torch.ones(len(ids), dtype=torch.float64, device=hidden.device)
    nats = target.double() / LOG2_E
    sums = Sums(torch.zeros_like(ones), ones, nats, nats.clone(), chosen, slope)
    _pass(head, hidden, ids, target, sums, chunk, gradient, smoothing, keep)
    far = (~(sums.others <= _FAR)).nonzero()[:, 0]
    if len(far):
        _rescan(head, hidden, ids, target, sums, far, chunk, gradient, smoothing)
    return sums


def _pass(
    head: Head,
    hidden: Tensor,
    ids: Tensor,
    reference: Tensor,
    sums: Sums,
    chunk: int,
    gradient: bool,
    smoothing: bool,
    keep: Room | None,
) -> None:
    """Fill ``sums`` from one pass over the vocabulary."""
    n, device = len(ids), hidden.device
    factor = head.prepare(hidden)
    width = tile_width(n, head, chunk)
    if keep is None:
        buffer, step = torch.empty(n * width, dtype=head.dtype, device=device), 0
    else:
        buffer, step = keep
    capped = head.soft_cap is not None
    rows = torch.zeros(n, head.width, dtype=head.dtype, device=device) if gradient else None
    low = _low(head, n, device) if gradient else None
    flat = n if capped else 1
    even = torch.zeros(flat, head.width, dtype=head.dtype, device=device) if smoothing else None
    even_low = _low(head, flat, device) if smoothing else None
    total = torch.zeros(n, dtype=torch.float64, device=device) if smoothing else None
    if keep is not None:
        sums.tiles, sums.slopes = [], ([] if capped and smoothing else None)
    edges = torch.arange(0, head.vocab + width, width, device=device)
    edge = torch.searchsorted(ids, edges.to(ids.dtype)).tolist()
    order = torch.arange(n, device=device)
    r = reference[:, None]
    for k, part in enumerate(head.tiles(width)):
        size = part.hi - part.lo
        start = step * part.lo
        tile = buffer[start : start + n * size].view(n, size)
        head.products(factor, part, tile)
        sloped = capped and (gradient or smoothing or keep is not None)
        slope = torch.empty_like(tile) if sloped else None
        head.cap(tile, slope).sub_(r)
        if total is not None:
            total += tile.sum(1)
        tile.exp2_()
        a, b = edge[k], edge[k + 1]
        tile[order[a:b], ids[a:b] - part.lo] = 0.0
        sums.others += tile.sum(1)
        if slope is not None:
            tile.mul_(slope)
        if rows is not None:
            head.add_rows(rows, low, tile, part)
        if even is not None:
            weights = slope if slope is not None else torch.ones_like(tile[:1])
            head.add_rows(even, even_low, weights, part)
        if sums.tiles is not None:
            sums.tiles.append(tile)
        if sums.slopes is not None and slope is not None:
            sums.slopes.append(slope)
    if rows is not None:
        sums.rows = head.join(rows, low)
    if even is not None:
        sums.even = head.join(even, even_low)
    if total is not None:
        sums.total = (total + reference.double() * head.vocab) / LOG2_E


def _low(head: Head, n: int, device: torch.device) -> Tensor | None:
    if head.lora is None:
        return None
    return torch.zeros(n, len(head.lora.A), dtype=head.dtype, device=device)


def _rescan(
    head: Head,
    hidden: Tensor,
    ids: Tensor,
    target: Tensor,
    sums: Sums,
    far: Tensor,
    chunk: int,
    gradient: bool,
    smoothing: bool,
) -> None:
    """Scan rows again whose targets lie so deep that e^(z − z_y) overflows: from their maximum."""
    some, some_ids = hidden[far], ids[far]
    factor = head.prepare(some)
    highest = target[far]
    width = tile_width(len(far), head, chunk)
    for part in head.tiles(width):
        tile = torch.empty(len(far), part.hi - part.lo, dtype=head.dtype, device=hidden.device)
        highest = torch.maximum(highest, head.cap(head.products(factor, part, tile)).amax(1))
    room = None
    if sums.tiles is not None:
        flat = torch.empty(len(far) * head.vocab, dtype=head.dtype, device=hidden.device)
        room = Room(flat, len(far))
    again = Sums(
        torch.zeros_like(sums.others[far]), sums.own[far], sums.target[far], highest.double(),
        sums.chosen[far], None,
    )  # fmt: skip
    _pass(head, some, some_ids, highest, again, chunk, gradient, smoothing, room)
    sums.others[far] = again.others
    sums.reference[far] = highest.double() / LOG2_E
    sums.own[far] = torch.exp2(target[far].double() - highest.double())
    if sums.total is not None and again.total is not None:
        sums.total[far] = again.total
    if sums.rows is not None and again.rows is not None:
        sums.rows[far] = again.rows
    if sums.tiles is not None and again.tiles is not None:
        _replace(sums.tiles, again.tiles, far)


def _replace(tiles: list[Tensor], others: list[Tensor], rows: Tensor) -> None:
    """Put the rows of differently cut tiles in place of the tiles' own."""
    whole = torch.cat(others, dim=1)
    lo = 0
    for tile in tiles:
        tile[rows] = whole[:, lo : lo + tile.shape[1]]
        lo += tile.shape[1]
