"""Objectives whose gradient needs a row's sums first: some rows at a time keep their logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tunemath.objective.fused.function import Budget, Gradients, Needs, blocks
from tunemath.objective.fused.head import Head

__all__ = ["KeptRule"]


@dataclass
class KeptRule:
    """A rule with values from tiles that are forgotten, and dvalue/dx from tiles that are kept."""

    form: Head
    chunk: int | None
    copies: ClassVar[int] = 1
    """How many arrays of V numbers a kept row needs, besides the slopes of a soft-cap."""

    @property
    def constants(self) -> tuple[Tensor | None, ...]:
        """Tensors that have to be unchanged when the backward pass computes again."""
        return ()

    def stream(self, hidden: Tensor, rows: slice) -> Tensor:
        """Return the values (n,) of a block of rows."""
        raise NotImplementedError

    def finish(self, hidden: Tensor, values: Tensor) -> None:
        """Put right, in place, what blocks without gradient left to a pass over the whole batch."""

    def keep(self, hidden: Tensor, rows: slice) -> tuple[Tensor, list[Tensor]]:
        """Return the values (n,) of a block, and dvalue/dx tile by tile but for the scale."""
        raise NotImplementedError

    def values(self, hidden: Tensor, rows: slice, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Return a block's values, and their gradient by the hidden states."""
        if not gradient:
            return self.stream(hidden, rows), None
        values, total = [], torch.empty_like(hidden[rows])
        for part in self._parts(rows, hidden):
            value, tiles = self.keep(hidden, part)
            values.append(value)
            here = slice(part.start - rows.start, part.stop - rows.start)
            total[here] = self._by_hidden(tiles).to(hidden.dtype)
            del tiles  # before the next rows make theirs
        return torch.cat(values), total

    def gradients(self, hidden: Tensor, upstream: Tensor, needs: Needs) -> Gradients:
        """Return all gradients of Σ_n upstream_n value_n."""
        grads = Gradients(self.form, hidden, needs)
        for rows in self._parts(slice(0, len(hidden)), hidden):
            _, tiles = self.keep(hidden, rows)
            factor = upstream[rows].to(self.form.dtype)
            grads.add_tiles(hidden[rows], tiles, factor * self.form.scale)
            if grads.hidden is not None:
                grads.hidden[rows] = (self._by_hidden(tiles) * factor[:, None]).to(hidden.dtype)
            del tiles
        return grads

    def _parts(self, rows: slice, hidden: Tensor) -> list[slice]:
        slopes = int(self.form.soft_cap is not None)
        held = Budget(self.chunk, self.form).kept(self.copies + slopes)
        return [
            slice(rows.start + part.start, rows.start + part.stop)
            for part in blocks(rows.stop - rows.start, held)
        ]

    def _by_hidden(self, tiles: list[Tensor]) -> Tensor:
        """Return Σ_v tile_v·scale·(W + s B A)_v, (n, D)."""
        form, n = self.form, len(tiles[0])
        total = tiles[0].new_zeros(n, form.width)
        low = None if form.lora is None else tiles[0].new_zeros(n, len(form.lora.A))
        for tile, part in zip(tiles, form.tiles(tiles[0].shape[1]), strict=True):
            form.add_rows(total, low, tile, part)
        return form.join(total, low).mul_(form.scale)
