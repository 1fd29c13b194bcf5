"""Which parameters ``target_parameters`` means: weights that no linear layer holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tunemath.space.blueprint import Blueprint, Module

__all__ = ["TargetParameter", "find_parameters", "has_parameter"]


class TargetParameter(NamedTuple):
    """A parameter that is adapted by itself."""

    module: Module
    name: str
    """Within its module: ``gate_up_proj``."""
    shape: tuple[int, ...]

    @property
    def full_name(self) -> str:
        """The name in the model."""
        return f"{self.module.name}.{self.name}"


def find_parameters(blueprint: Blueprint, names: Iterable[str]) -> tuple[TargetParameter, ...]:
    """Return the parameters of these names, and all whose names end in a dot and one of them."""
    wanted = frozenset(names)
    endings = tuple(f".{name}" for name in wanted)
    if not wanted:
        return ()
    every = (
        TargetParameter(module, name, shape)
        for module in blueprint.modules
        for name, shape in module.tensors
    )
    return tuple(p for p in every if p.full_name in wanted or p.full_name.endswith(endings))


def has_parameter(blueprint: Blueprint, name: str) -> bool:
    """Whether a parameter has this name, or ends in a dot and this name."""
    return bool(find_parameters(blueprint, (name,)))
