"""(IA)³: the inputs of feed-forward layers and the outputs of others, scaled by a vector."""

from __future__ import annotations

from typing import Any

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig, default_targets
from tunemath.space.peft.expressions import Expression, compiled
from tunemath.space.peft.tuners.factors import widths
from tunemath.space.peft.tuners.settings import layers
from tunemath.space.peft.tuners.targets import require_dimensions

__all__ = ["ia3"]


def ia3(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return (IA)³'s scales: ``d_in`` of a feed-forward layer, ``d_out`` of any other.

    Source: Liu et al. 2022, arXiv 2205.05638.
    """
    feedforward = _feedforward(blueprint, config)
    targets = layers(blueprint, config, "linear", "conv1d", "conv")

    def settings(module: Module) -> object:
        return module[1:], _is_feedforward(module.name, feedforward)

    groups = []
    for modules in grouped(require_dimensions(targets, config, 2, 3), settings).values():
        first = modules[0]
        inputs = _is_feedforward(first.name, feedforward)
        if first.kind == "conv":
            width = widths(config, first).d_in if inputs else first.shape[0]
            shape = (1, width, *[1] * (len(first.shape) - 2))
        else:
            width = first.d_in if inputs else first.d_out
            shape = (1, width) if inputs else (width, 1)
        groups.append(Group(modules, (Part("ia3_l", shape),), width))
    return Change(tuple(groups))


def _feedforward(blueprint: Blueprint, config: AdapterConfig) -> Any:
    """Return the names of feed-forward layers: those given, or PEFT's for the model type."""
    asked, targets = config["feedforward_modules"], config["target_modules"]
    if asked is None:
        asked = default_targets("IA3", blueprint.model_type, "feedforward_modules")
        if asked is None:
            raise ModelError(
                "PEFT has no default feedforward_modules for IA3 on model type "
                f"{blueprint.model_type!r}; give those of target_modules whose inputs are to be "
                "scaled, or an empty list"
            )
        return asked
    if isinstance(asked, list | set) and isinstance(targets, list | set):
        others = sorted(set(asked) - set(targets))
        if others:
            raise ModelError(
                f"IA3: feedforward_modules has {', '.join(others)}, which target_modules does not; "
                "add them there or leave them out"
            )
    return compiled(asked, asked) if isinstance(asked, str) else asked


def _is_feedforward(name: str, feedforward: Any) -> bool:
    """Whether a layer is one of those; PEFT asks for the end of its name, dot or no dot."""
    if isinstance(feedforward, Expression):
        return bool(feedforward.fullmatch(name))
    return any(name.endswith(end) for end in feedforward)
