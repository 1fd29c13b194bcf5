"""What a step's passes hold, whether from shapes or from measured sizes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Protocol

__all__ = ["Activations", "Curves", "Passes"]


@dataclass(frozen=True)
class Passes:
    """Bytes of a model's body in one training step, above weights and optimizer state."""

    kept: int
    """Held when the last hidden states are there, for the backward pass."""
    backward: int
    """The most that is held in the backward pass, gradients included."""
    gradients: int
    """The part of ``backward`` that is gradients of weights."""
    forward: int
    """The most that is held in the forward pass."""
    reference: int
    """The most that a pass without gradients holds."""
    prefix: int = 0
    """The part of what is kept that is a prefix's keys and values, a copy a row."""


class Activations(Protocol):
    """What a step's passes hold, by the rows in memory and their length."""

    def passes(self, rows: int, tokens: int, *, fresh: bool = True) -> Passes:
        """Return the bytes for B rows of T tokens; ``fresh`` if gradients are made here."""
        ...


@dataclass(frozen=True)
class Curves:
    """Passes that were measured at three sizes: ``c + B (a T + b T²)`` for each figure.

    ``points`` are ((rows, tokens), passes) of one length, of half of it, and of half of it with
    twice the rows. Exact at these, and between them where a figure has no kink.
    """

    points: tuple[tuple[tuple[int, int], Passes], ...]

    def passes(self, rows: int, tokens: int, *, fresh: bool = True) -> Passes:
        """Return the bytes for B rows of T tokens, by the curves through the points."""
        found = Passes(**{key: self._at(key, rows, tokens) for key in _FIGURES})
        if fresh:
            return found
        return replace(found, backward=found.backward - found.gradients, gradients=0)

    def _at(self, key: str, rows: int, tokens: int) -> int:
        (whole, at), (half, below), (_, twice) = self.points
        (b, t), (_, h) = whole, half
        f, g, d = (getattr(one, key) for one in (at, below, twice))
        row = (d - g) / b  # a h + b h², as rows are added at length h
        rest = g - b * row
        square = ((f - rest) / b - row * t / h) / (t * t - t * h)
        line = row / h - square * h
        return max(0, round(rest + rows * (line * tokens + square * tokens * tokens)))


_FIGURES = tuple(field.name for field in fields(Passes))
