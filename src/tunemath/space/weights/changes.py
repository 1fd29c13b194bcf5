"""What an update makes of one tensor of its base, some rows at a time, in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tunemath.space.checkpoint import not_finite
from tunemath.space.weights.reader import Weights

__all__ = ["Change", "LowRankStep", "Stored"]

Rows = slice | None


class Stored(NamedTuple):
    """A tensor in a file."""

    weights: Weights
    name: str

    def read(self, rows: Rows = None) -> Tensor:
        """Return it, or some rows of it, in float32; `ModelError` where it is not finite."""
        found = self.weights.read(self.name, rows).float()
        odd = found.numel() - int(torch.isfinite(found).sum())
        if odd:
            file = self.weights.tensors[self.name].file
            raise not_finite(self.weights.folder / file, self.name, odd)
        return found


@dataclass(frozen=True)
class LowRankStep:
    """``ΔW = s·B A``, with A (r, d_in) and B (d_out, r); or its transpose."""

    A: Stored
    B: Stored
    scale: float
    transposed: bool = False
    """Whether the weight is (d_in, d_out), as an embedding's and a Conv1D's."""

    def rows(self, shape: tuple[int, ...], rows: Rows) -> Tensor:
        """Return some rows of ΔW, in the shape that the weight has after its first axis."""
        a, b = self.A.read(), self.B.read()
        a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
        left, right = (a.T, b.T) if self.transposed else (b, a)
        part = left[rows] if rows is not None else left
        return (self.scale * part @ right).reshape(-1, *shape[1:])


@dataclass(frozen=True)
class Change:
    """How one tensor changes: replaced, rows of it replaced, a step added; or computed whole."""

    module: str
    """The module that it belongs to, by its name in the live model."""
    value: Stored | None = None
    """What stands in its place."""
    tokens: tuple[int, ...] = ()
    """Rows that others stand in the place of."""
    token_rows: Stored | None = None
    """Those others, (n, D)."""
    step: LowRankStep | None = None
    """What is added, after that."""
    vector: tuple[Stored, float] | None = None
    """A vector that is added, and its factor."""
    whole: Callable[[], Tensor] | None = None
    """What computes all of the tensor, where it is nothing of the above."""
    shape: tuple[int, ...] | None = None
    """The shape afterwards, where it is another."""

    @property
    def additive(self) -> bool:
        """Whether it only adds something that does not depend on the tensor."""
        replaced = self.value is not None or self.token_rows is not None
        return self.whole is None and not replaced

    def delta(self, shape: tuple[int, ...], rows: Rows) -> Tensor:
        """Return ΔW, some rows of it, of an additive change."""
        if self.vector is not None:
            stored, scale = self.vector
            return scale * stored.read(rows)
        assert self.step is not None
        return self.step.rows(shape, rows)

    def apply(self, before: Tensor, rows: Rows, computed: Tensor | None = None) -> Tensor:
        """Return some rows of the tensor afterwards.

        ``before`` has the same rows in float32, (rows, …). ``computed`` is all that ``whole`` gave.
        """
        if computed is not None:
            return computed if rows is None else computed[rows].float()
        after = before if self.value is None else self.value.read(rows)
        if self.token_rows is not None:
            after = self._with_rows(after, rows)
        if self.step is not None or self.vector is not None:
            after = after + self.delta(self.shape or tuple(after.shape), rows)
        return after

    def _with_rows(self, after: Tensor, rows: Rows) -> Tensor:
        assert self.token_rows is not None
        start, stop = (rows.start, rows.stop) if rows is not None else (0, len(after))
        inside = [at for at, token in enumerate(self.tokens) if start <= token < stop]
        places = torch.tensor([self.tokens[at] - start for at in inside], dtype=torch.long)
        return after.index_copy(0, places, self.token_rows.read()[inside])
