"""``layer_replication``: a stack of layers made longer by using layers again, weights shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Change

__all__ = ["change_of_replicated"]


def change_of_replicated(
    blueprint: Blueprint, spans: Any, change_of: Callable[[Blueprint], Change]
) -> Change:
    """Return a method's change to the model whose stack is put together from spans of its layers.

    What a copy of a layer is given is listed under the layer whose weights it shares; layers in no
    span are removed.
    """
    stack, count = _stack(blueprint)
    chosen = _chosen(spans, stack, count)
    sources: dict[str, Module] = {}
    modules: list[Module] = []
    tied = {name: first for name, first in blueprint.tied.items() if not _inside(name, stack)}
    placed = False
    for module in blueprint.modules:
        if not _inside(module.name, stack):
            modules.append(module)
        elif not placed:
            placed = True
            for new, source, name in _copies(blueprint, stack, chosen, tied):
                sources[name] = source
                modules.append(new)
    wide = replace(blueprint, modules=tuple(modules), tied=tied)
    change = change_of(wide)
    left_out = {
        f"{m.name}.{tensor}"
        for m in blueprint.modules
        if _inside(m.name, stack) and _layer(m.name, stack) not in chosen
        for tensor, _ in m.tensors
    }
    return replace(
        change,
        groups=tuple(
            replace(group, modules=tuple(sources.get(m.name, m) for m in group.modules))
            for group in change.groups
        ),
        unfrozen=frozenset(_source_name(name, sources) for name in change.unfrozen),
        removed=change.removed | (left_out - blueprint.tied.keys()),
    )


def _stack(blueprint: Blueprint) -> tuple[str, int]:
    """Return the name of the stack of layers, where PEFT looks for it, and its length."""
    containers = frozenset(blueprint.containers)
    place = ""
    while f"{place}model" in containers:
        place += "model."
    if f"{place}bert" in containers:
        place += "bert."
    for stack in ("layers", "encoder.layer", "h"):
        name = place + stack
        if name in containers:
            inside = (m.name for m in blueprint.modules if _inside(m.name, name))
            layers = {each.removeprefix(f"{name}.").partition(".")[0] for each in inside}
            if all(layer.isdecimal() for layer in layers):
                return name, 1 + max(map(int, layers))
            break
    raise ModelError(
        f"layer_replication needs a list of layers, model.layers, encoder.layer or h; this "
        f"{blueprint.model_type or 'model'} has none there; leave layer_replication out"
    )


def _chosen(spans: Any, stack: str, count: int) -> list[int]:
    """Return the layers of the new stack by their former numbers."""
    chosen: list[int] = []
    for span in spans:
        start, end = span if isinstance(span, list | tuple) and len(span) == 2 else (None, None)
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start <= end <= count):
            raise ModelError(
                f"layer_replication has {span!r}; {stack} has layers 0 to {count - 1}, and the "
                f"end of a span is not counted: give numbers from 0 to {count}"
            )
        chosen += range(start, end)
    return chosen


def _copies(
    blueprint: Blueprint, stack: str, chosen: list[int], tied: dict[str, str]
) -> Iterator[tuple[Module, Module, str]]:
    """Yield each module of the new stack, the one that it shares weights with, and its name."""
    first: dict[int, int] = {}
    layers: dict[int, list[Module]] = {}
    for module in blueprint.under(stack):
        layers.setdefault(_layer(module.name, stack), []).append(module)
    for new, old in enumerate(chosen):
        shared = first.setdefault(old, new)
        for source in layers.get(old, ()):  # a layer without parameters has none
            rest = source.name.removeprefix(f"{stack}.{old}")
            name = f"{stack}.{new}{rest}"
            if shared != new:
                for tensor, _ in source.tensors:
                    tied[f"{name}.{tensor}"] = f"{stack}.{shared}{rest}.{tensor}"
            yield source._replace(name=name), source, name


def _inside(name: str, stack: str) -> bool:
    return name.startswith(f"{stack}.")


def _layer(name: str, stack: str) -> int:
    return int(name.removeprefix(f"{stack}.").partition(".")[0])


def _source_name(name: str, sources: dict[str, Module]) -> str:
    module, _, tensor = name.rpartition(".")
    return f"{sources[module].name}.{tensor}" if module in sources else name
