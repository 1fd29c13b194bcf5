"""LayerNorm tuning: a trained copy of each norm, or of whatever else is targeted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from math import prod

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module, Tensor
from tunemath.space.peft.change import Change, Group, Part
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.match import find_targets
from tunemath.space.peft.tuners.targets import require_some

__all__ = ["ln_tuning"]


def ln_tuning(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return a copy of each target: ``D`` of an RMSNorm, ``2 D`` of a LayerNorm.

    PEFT copies any module, a whole block included, and keeps the original beside the copy.

    Source: Zhao et al. 2023, arXiv 2312.11420.
    """
    targets = require_some(find_targets(blueprint, config), config)
    names = dict.fromkeys((*targets.containers, *(m.name for m in targets.modules)))
    _require_apart(names)
    alike: dict[tuple[Tensor, ...], list[Module]] = {}
    blocks = frozenset(blueprint.containers)
    for name in names:
        inside = blueprint.under(name) if name in blocks else (blueprint.by_name[name],)
        for module, tensors in _copied(blueprint, inside):
            alike.setdefault(tensors, []).append(module)
    return Change(
        tuple(
            Group(
                tuple(modules),
                tuple(Part(f"ln_tuning_layers.{name}", shape) for name, shape in tensors),
                sum(prod(shape) for _, shape in tensors),
            )
            for tensors, modules in alike.items()
        )
    )


def _require_apart(names: Collection[str]) -> None:
    """Refuse a target within another: PEFT looks for it where the copy has taken its place."""
    for name in names:
        around = name.rpartition(".")[0]
        while around and around not in names:
            around = around.rpartition(".")[0]
        if around:
            raise ModelError(
                f"LN_TUNING targets {around} and {name}, which is a part of it; PEFT cannot copy "
                "both, so leave one out of target_modules"
            )


def _copied(
    blueprint: Blueprint, modules: Iterable[Module]
) -> Iterator[tuple[Module, tuple[Tensor, ...]]]:
    """Yield the modules of a target; of tensors that are tied within it, the first is copied."""
    seen = set()
    for module in modules:
        tensors = []
        for key, shape in module.tensors:
            full = f"{module.name}.{key}"
            first = blueprint.tied.get(full, full)
            if first not in seen:
                tensors.append((key, shape))
            seen.add(first)
        yield module, tuple(tensors)
