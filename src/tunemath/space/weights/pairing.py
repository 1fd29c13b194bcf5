"""Two checkpoints side by side: which tensor of one is which of the other, and which differ."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tunemath.errors import ModelError
from tunemath.space.weights.reader import Weights, row_blocks

__all__ = ["Pair", "Pairing", "bare_name", "pair_up"]

_PREFIXES = ("model.", "transformer.", "language_model.", "base_model.")


@dataclass(frozen=True)
class Pair:
    """A tensor of the base and the same one of another checkpoint."""

    before: str
    """Its name in the base."""
    after: str
    """Its name in the other."""
    shape: tuple[int, ...]
    """The base's shape."""
    other: tuple[int, ...]
    """The other's shape; it differs where a vocabulary grew."""

    @property
    def resized(self) -> bool:
        """Whether the two differ in their number of rows."""
        return self.shape != self.other


@dataclass(frozen=True)
class Pairing:
    """The tensors that two checkpoints share, and those that only one has."""

    base: Weights
    tuned: Weights
    pairs: tuple[Pair, ...]
    only_base: tuple[str, ...]
    only_tuned: tuple[str, ...]

    def differs(self, pair: Pair) -> bool:
        """Return whether any element differs, however each is stored."""
        if pair.resized:
            return True
        for rows in row_blocks(pair.shape):
            before, after = self.base.read(pair.before, rows), self.tuned.read(pair.after, rows)
            if before.dtype != after.dtype:
                before, after = before.to(torch.float64), after.to(torch.float64)
            if not torch.equal(before, after):
                return True
        return False


def pair_up(base: Path, tuned: Path) -> Pairing:
    """Return which tensors of two checkpoints belong together, by name.

    Names that differ by a prefix only, as those of a bare body and of the model with its head, are
    the same. Raises `ModelError` where the two have no tensor in common or one tensor in shapes
    that differ in more than the number of rows.
    """
    first, second = Weights(base), Weights(tuned)
    bare = {bare_name(name): name for name in second.tensors}
    pairs, only_base = [], []
    taken = set()
    for name, header in first.tensors.items():
        other = name if name in second.tensors else bare.get(bare_name(name))
        if other is None:
            only_base.append(name)
            continue
        taken.add(other)
        shape = second.tensors[other].shape
        if shape[1:] != header.shape[1:] or len(shape) != len(header.shape):
            raise ModelError(
                f"{name} is {list(header.shape)} in {base} and {list(shape)} in {tuned}; expected "
                "two models of one architecture, give the base that the other was tuned from"
            )
        pairs.append(Pair(name, other, header.shape, shape))
    if not pairs:
        raise ModelError(
            f"{base} and {tuned} have no tensor in common ({next(iter(first.tensors), 'none')} and "
            f"{next(iter(second.tensors), 'none')}); give the base that the other was tuned from"
        )
    rest = tuple(name for name in second.tensors if name not in taken)
    return Pairing(first, second, tuple(pairs), tuple(only_base), rest)


def bare_name(name: str) -> str:
    """Return a tensor's name without the parts that only some ways to store a model have."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
