"""A model as data: its modules and shapes, from a configuration, from headers, without weights."""

from __future__ import annotations

from tunemath.space.blueprint.positions import Positions, positions_of
from tunemath.space.blueprint.read import read_blueprint
from tunemath.space.blueprint.record import Blueprint, Builder, Kind, Module, Tensor

__all__ = [
    "Blueprint",
    "Builder",
    "Kind",
    "Module",
    "Positions",
    "Tensor",
    "positions_of",
    "read_blueprint",
]
