"""What differs between two checkpoints, one weight at a time, as matrices.

A convolution's weight (m, …) is the matrix of its rows. Fused experts (E, m, n) are E matrices,
name[0] to name[E − 1]. Where a vocabulary grew, the rows that both have are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tunemath.errors import ModelError
from tunemath.space.factors import Factors
from tunemath.space.tuner_factors import Kronecker
from tunemath.space.weights.pairing import Pair, Pairing
from tunemath.space.weights.reader import Weights, row_blocks

__all__ = [
    "Difference",
    "Inventory",
    "as_matrices",
    "checkpoint_differences",
    "read_values",
    "square_norm",
    "stored_shape",
    "tensor_differences",
]

_BLOCK = 128  # rows and columns that share a scale, in DeepSeek's format
_SCALES = ("_scale_inv", "_scale")


@dataclass(frozen=True)
class Difference:
    """A weight that differs: as it was, and either as it is or by how much in factors."""

    name: str
    """The module's name, without .weight."""
    before: Tensor | None
    """(m, n), in the dtype that it is stored in; None where an update's base is not given."""
    after: Tensor | None = None
    """(m, n)."""
    update: Factors | Kronecker | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n), as the weight is stored."""
        if self.update is not None:
            return stored_shape(self.update)
        assert self.before is not None
        return self.before.shape[0], self.before.shape[1]

    def delta(self, dtype: torch.dtype, rows: slice | None = None) -> Tensor:
        """Return ΔW (m, n), or some of its rows, computed in ``dtype``."""
        part = slice(None) if rows is None else rows
        if self.update is None:
            assert self.before is not None
            assert self.after is not None
            return self.after[part].to(dtype) - self.before[part].to(dtype)
        return torch.from_numpy(self.update.delta()[part]).to(dtype)


def stored_shape(update: Factors | Kronecker) -> tuple[int, int]:
    """Return the shape of the weight that an update belongs to, as it is stored."""
    rows, columns = update.shape
    transposed = isinstance(update, Factors) and update.transposed
    return (columns, rows) if transposed else (rows, columns)


@dataclass
class Inventory:
    """What became of all tensors; filled in as the differences are taken."""

    unchanged: int = 0
    """Tensors, and experts of one, that are equal."""
    vectors: list[dict[str, Any]] = field(default_factory=list)
    """Norms and biases that differ: name, ‖Δw‖, and relative to ‖w‖."""
    resized: list[dict[str, Any]] = field(default_factory=list)
    """Weights whose number of rows differs: name, both shapes."""
    only_base: list[str] = field(default_factory=list)
    only_tuned: list[str] = field(default_factory=list)
    not_compared: list[str] = field(default_factory=list)
    """Packed and integer tensors that differ: their values are no weights."""

    def add_vector(self, name: str, before: Tensor, after: Tensor) -> None:
        """Note how far a vector moved."""
        moved = float((after.double() - before.double()).norm())
        norm = float(before.double().norm())
        relative = moved / norm if norm else None
        self.vectors.append({"name": name, "frobenius": moved, "relative_norm": relative})


def checkpoint_differences(
    pairing: Pairing, inventory: Inventory, tick: Callable[[int, int], None]
) -> Iterator[Difference]:
    """Yield each matrix that differs, and write into ``inventory`` what became of the others.

    ``tick`` hears how many of how many tensors are done.
    """
    inventory.only_base += _weights_of(pairing.only_base, pairing.base)
    inventory.only_tuned += _weights_of(pairing.only_tuned, pairing.tuned)
    for done, pair in enumerate(pairing.pairs):
        tick(done, len(pairing.pairs))
        yield from _differences(pairing, pair, inventory)
    tick(len(pairing.pairs), len(pairing.pairs))


def _weights_of(names: tuple[str, ...], weights: Weights) -> list[str]:
    """Return the names without those of the scales that belong to other tensors."""
    return [name for name in names if _scaled(name) not in weights.tensors]


def _scaled(name: str) -> str:
    """Return the name of the tensor that a scale belongs to."""
    ending = next((end for end in _SCALES if name.endswith(end)), "")
    return name.removesuffix(ending) if ending else ""


def _differences(pairing: Pairing, pair: Pair, inventory: Inventory) -> Iterator[Difference]:
    if _scaled(pair.before) in pairing.base.tensors:
        return
    if not pairing.differs(pair) and not _scales_differ(pairing, pair):
        inventory.unchanged += 1
        return
    before = read_values(pairing.base, pair.before)
    after = read_values(pairing.tuned, pair.after)
    yield from tensor_differences(pair.before, before, after, inventory)


def tensor_differences(
    name: str, before: Tensor, after: Tensor, inventory: Inventory
) -> Iterator[Difference]:
    """Yield the matrices of one tensor that differ; of two sizes the rows that both have."""
    if not (before.is_floating_point() and after.is_floating_point()):
        inventory.not_compared.append(name)
        return
    if before.shape != after.shape:
        shapes = {"base": list(before.shape), "tuned": list(after.shape)}
        inventory.resized.append({"name": name, **shapes})
        rows = min(before.shape[0], after.shape[0])
        before, after = before[:rows], after[:rows]
    if before.dim() < 2:
        if not torch.equal(before.double(), after.double()):
            inventory.add_vector(name, before, after)
        return
    module = name.removesuffix(".weight")
    for (each, old), (_, new) in zip(
        as_matrices(module, before), as_matrices(module, after), strict=True
    ):
        if torch.equal(old, new) if old.dtype == new.dtype else bool((old == new).all()):
            inventory.unchanged += 1
        else:
            yield Difference(each, old, new)


def as_matrices(name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield a weight of two axes or more as matrices, with their names."""
    if weight.dim() == 3 and "expert" in name:
        yield from ((f"{name}[{place}]", part) for place, part in enumerate(weight))
    else:
        yield name, weight.flatten(1)


def read_values(weights: Weights, name: str) -> Tensor:
    """Return a tensor; an 8-bit one times the scales that are stored beside it, in float32.

    Raises `ModelError` where the scales fit neither the tensor, its rows, nor its blocks of
    128 × 128.
    """
    stored = weights.read(name)
    scale = next((name + end for end in _SCALES if name + end in weights.tensors), None)
    if scale is None or stored.element_size() != 1 or not stored.is_floating_point():
        return stored
    factor, values = weights.read(scale).float(), stored.float()
    if factor.numel() == 1:
        return values * factor.reshape(())
    if factor.numel() == values.shape[0]:
        return values * factor.reshape(-1, *[1] * (values.dim() - 1))
    blocks = tuple(-(-size // _BLOCK) for size in values.shape[-2:])
    if tuple(factor.shape[-2:]) == blocks and factor.shape[:-2] == values.shape[:-2]:
        wide = factor.repeat_interleave(_BLOCK, -2).repeat_interleave(_BLOCK, -1)
        return values * wide[..., : values.shape[-2], : values.shape[-1]]
    raise ModelError(
        f"{weights.folder} scales {name} {list(values.shape)} by {scale} {list(factor.shape)}; "
        "expected one scale, one for each row, or one for each 128 × 128 block; give the model in "
        "bfloat16"
    )


def _scales_differ(pairing: Pairing, pair: Pair) -> bool:
    """Return whether two 8-bit tensors that are equal bit by bit are scaled otherwise."""
    for end in _SCALES:
        old, new = (
            weights.read(name + end) if name + end in weights.tensors else None
            for weights, name in ((pairing.base, pair.before), (pairing.tuned, pair.after))
        )
        if (old is None) != (new is None):
            return True
        if old is not None and new is not None and not torch.equal(old, new):
            return True
    return False


def square_norm(matrix: Tensor) -> float:
    """Return ‖W‖_F² in float64, block by block."""
    return sum(
        float(matrix[rows].to(torch.float64).square().sum())
        for rows in row_blocks(tuple(matrix.shape))
        if rows is not None
    )
