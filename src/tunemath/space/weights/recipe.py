"""What tensors a base and an update give together, each with where it comes from and its change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint
from tunemath.space.weights.changes import Change
from tunemath.space.weights.names import stored_names
from tunemath.space.weights.reader import TORCH_DTYPES, Weights, row_blocks
from tunemath.space.weights.writer import Planned

__all__ = ["Ingredient", "NamesDiffer", "Recipe", "parts_of", "recipe_of"]

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Small enough to stay in a processor's cache, and whole blocks of any 4-bit format.
_PART = 2**20


class NamesDiffer(ModelError):
    """A changed parameter is not one stored tensor, so it can't be changed where it is stored."""


class Ingredient(NamedTuple):
    """One tensor of a product."""

    source: str
    """The base's stored tensor that it starts from."""
    change: Change | None
    """What happens to it; None where it stays as it is."""
    shape: tuple[int, ...]
    """Its shape in the product."""


@dataclass(frozen=True)
class Recipe:
    """Every tensor of a product, by its name there, in the base's order."""

    base: Weights
    tensors: Mapping[str, Ingredient]
    tied: bool
    """Whether head and embedding are one in the base."""
    untied: tuple[str, ...]
    """Heads that become tensors of their own, since the update moves one of the two only."""
    embedding: str
    """The input embedding's stored name; empty where there is none."""
    head: str
    """The name that a head has or would have; empty where there is none."""

    def changed(self) -> Iterator[tuple[str, Ingredient]]:
        """Yield the tensors that change."""
        return ((name, each) for name, each in self.tensors.items() if each.change is not None)

    def plan(self, dtype: str | None) -> dict[str, Planned]:
        """Return the dtype and shape of each tensor; floats in ``dtype`` unless it is None."""
        planned = {}
        for name, each in self.tensors.items():
            stored = TORCH_DTYPES[self.base.tensors[each.source].dtype]
            wanted = getattr(torch, dtype) if dtype and stored in _FLOATS else stored
            if each.change is not None and stored not in _FLOATS:
                raise ModelError(
                    f"{self.base.folder}: {each.source} is stored as {stored}, into which nothing "
                    "can be merged; give the unquantised base"
                )
            planned[name] = Planned(wanted, each.shape)
        return planned


def recipe_of(
    base: Weights, blueprint: Blueprint, changes: Mapping[str, Change], follows: bool
) -> Recipe:
    """Return what becomes of a base under changes of live parameters.

    ``follows`` says that what is tied changes as what it is tied to. Otherwise a head that is
    tied and whose embedding alone changes, or that alone changes, becomes a tensor of its own, as
    it is in the model that was trained. Raises `NamesDiffer` where a parameter is not stored as
    one tensor.
    """
    stored = stored_names(base.tensors, blueprint)
    tied = _ties(blueprint)
    roots = set(tied.values())
    tensors = {name: Ingredient(name, None, h.shape) for name, h in base.tensors.items()}
    for live, change in changes.items():
        if live not in tied:
            name = stored.get(live, live if live in base.tensors else None)
            _put(tensors, base, name, live, change)
    untied = []
    for live, root in tied.items():
        own, of_root = changes.get(live), changes.get(root)
        name, source = stored.get(live, _beside(live, root, stored)), stored.get(root)
        if source is None:
            raise NamesDiffer(f"{root} is not stored as one tensor in {base.folder}")
        if follows:
            if name in tensors:
                tensors[name] = tensors[source]
        elif own is not None or of_root is not None:
            untied.append(name)
            shape = (own and own.shape) or base.tensors[source].shape
            tensors[name] = Ingredient(source, own, shape)
    embedding, head = (f"{each}.weight" for each in (blueprint.embedding, blueprint.head))
    return Recipe(
        base,
        tensors,
        head in tied or embedding in tied,
        tuple(untied),
        stored.get(embedding, "") or (stored.get(next(iter(roots), ""), "")),
        stored.get(head, head if head in tied else ""),
    )


def _ties(blueprint: Blueprint) -> dict[str, str]:
    """Return the heads and embeddings that are another parameter."""
    if blueprint.config.get("tie_word_embeddings") is False:
        return {}
    return dict(blueprint.tied)


def _beside(live: str, root: str, stored: Mapping[str, str]) -> str:
    """Return the name that a tied parameter has when it is stored: as its root's, if shortened."""
    shortened = stored.get(root, root) != root and live.partition(".")[0] == root.partition(".")[0]
    return live.partition(".")[2] if shortened else live


def _put(
    tensors: dict[str, Ingredient], base: Weights, name: str | None, live: str, change: Change
) -> None:
    if name is None:
        raise NamesDiffer(f"{live} is not stored as one tensor in {base.folder}")
    shape = base.tensors[name].shape
    tensors[name] = Ingredient(name, change, change.shape or shape)


def parts_of(recipe: Recipe, name: str, subtract: bool = False) -> Iterator[tuple[Tensor, ...]]:
    """Yield a tensor of the product in consecutive parts: ``W``, ``W + ΔW`` and ``ΔW``, float32.

    With ``subtract``, the second is ``W − ΔW``, which only an additive change has. Where a tensor
    grew, W is 0 in the rows that are new.
    """
    each = recipe.tensors[name]
    assert each.change is not None
    change = each.change
    computed = change.whole() if change.whole is not None else None
    stored = recipe.base.tensors[each.source].shape
    for rows in _aligned(each.shape):
        before = _grown(recipe.base, each.source, rows, stored, each.shape)
        if change.additive:
            delta = change.delta(each.shape, rows)
            yield before, before - delta if subtract else before + delta, delta
        else:
            after = change.apply(before, rows, computed)
            yield before, after, after - before


def _grown(
    base: Weights, name: str, rows: slice | None, stored: tuple[int, ...], shape: tuple[int, ...]
) -> Tensor:
    if rows is None or stored == shape:
        return base.read(name, rows).float()
    if stored[1:] != shape[1:]:
        raise ModelError(f"{name} is {list(stored)} in the base, and {list(shape)} in the update")
    there = base.read(name, slice(rows.start, min(rows.stop, stored[0]))).float()
    lacking = rows.stop - rows.start - len(there)
    return torch.cat([there, there.new_zeros(lacking, *shape[1:])]) if lacking else there


def _aligned(shape: tuple[int, ...]) -> Iterator[slice | None]:
    """Yield blocks of rows, 64 or a multiple where a block has so many."""
    blocks = list(row_blocks(shape, _PART))
    step = blocks[0].stop - blocks[0].start if blocks and blocks[0] is not None else 0
    if step < 64 or len(blocks) < 2:
        yield from blocks
        return
    step -= step % 64
    yield from (slice(at, min(at + step, shape[0])) for at in range(0, shape[0], step))
