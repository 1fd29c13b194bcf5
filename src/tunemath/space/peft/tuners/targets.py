"""What some tuners ask of their targets beyond their kinds, and say of single ones."""

from __future__ import annotations

from typing import Any

from tunemath.errors import ModelError
from tunemath.space.blueprint import Module
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.expressions import compiled
from tunemath.space.peft.match import Targets

__all__ = ["patterns_of", "require_dimensions", "require_some"]


def require_dimensions(
    modules: tuple[Module, ...], config: AdapterConfig, *dimensions: int
) -> tuple[Module, ...]:
    """Return the modules; their convolutions must be over so many dimensions."""
    for module in modules:
        if module.kind == "conv" and len(module.shape) - 2 not in dimensions:
            known = " or ".join(map(str, dimensions))
            raise ModelError(
                f"{config.peft_type} takes convolutions over {known} dimensions; that of "
                f"{module.name} has a weight of shape {module.shape}; leave it out of "
                "target_modules"
            )
    return modules


def require_some(targets: Targets, config: AdapterConfig) -> Targets:
    """Return the targets, of whatever kinds, of which there must be one."""
    if not targets.modules and not targets.containers:
        raise ModelError(
            f"{config.peft_type}: target_modules {targets.asked!r} match no module of this model; "
            "give names that it has"
        )
    return targets


def patterns_of(config: AdapterConfig, name: str) -> dict[str, Any]:
    """Return a setting that must be a mapping from patterns of names to numbers."""
    patterns = config[name]
    for pattern in patterns:
        compiled(pattern, pattern)
    return dict(patterns)
