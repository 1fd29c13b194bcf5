"""What a method does to a model: the tensors that it adds, trains, replaces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from math import prod
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

from tunemath.space.blueprint import Module

__all__ = ["Change", "Group", "Part", "Shared", "frozen", "grouped", "held"]


class Part(NamedTuple):
    """A parameter that a method adds."""

    name: str
    """As PEFT names it, without the adapter's name: ``lora_A.weight``."""
    shape: tuple[int, ...]
    trainable: bool = True

    @property
    def parameters(self) -> int:
        """The number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Group:
    """Modules that are alike in shape and settings, and what each of them is given."""

    modules: tuple[Module, ...]
    parts: tuple[Part, ...]
    trainable: int
    """The closed form of one module's trainable parameters; held against its parts."""


@dataclass(frozen=True)
class Shared:
    """What a method holds once beside the model: a prompt, a vector bank, shared projections."""

    name: str
    """Where it lies: ``prompt_encoder``, ``base_model.vera_A``."""
    parts: tuple[Part, ...]
    trainable: int
    """The closed form of its trainable parameters; held against its parts."""


@dataclass(frozen=True)
class Change:
    """All that a method does to a model; the rest of the model is frozen."""

    groups: tuple[Group, ...] = ()
    shared: tuple[Shared, ...] = ()
    unfrozen: frozenset[str] = frozenset()
    """The base's own parameters that are trained, by full name (``….q_proj.bias``)."""
    removed: frozenset[str] = frozenset()
    """The base's own parameters that the method takes out of the model, by full name."""
    notes: tuple[str, ...] = ()
    """Where PEFT's figures and the plain truth part, a sentence each."""
    findings: tuple[str, ...] = ()
    """The settings that have no effect on this model, a sentence each with what to do."""
    unmatched: tuple[str, ...] = ()
    """The target names asked for that matched nothing."""

    @property
    def targets(self) -> tuple[Module, ...]:
        """Every module that is given something, in groups."""
        return tuple(module for group in self.groups for module in group.modules)


def held(change: Change) -> Change:
    """Return a change whose closed forms are the sums of their parts; else it is an error here."""
    for each in (*change.groups, *change.shared):
        parts = sum(part.parameters for part in each.parts if part.trainable)
        if parts != each.trainable:
            raise AssertionError(
                f"the closed form gives {each.trainable} trainable parameters, its parts {parts}"
            )
    return change


_Given = TypeVar("_Given", Group, Shared)


def frozen(each: _Given) -> _Given:
    """Return what modules are given, or what lies beside them, with nothing of it trained."""
    parts = tuple(part._replace(trainable=False) for part in each.parts)
    return replace(each, parts=parts, trainable=0)


def grouped(
    modules: Iterable[Module], key: Callable[[Module], Hashable] = itemgetter(slice(1, None))
) -> dict[Any, tuple[Module, ...]]:
    """Return modules by what they share: kind and tensors, all but the name, unless said."""
    found: defaultdict[Any, list[Module]] = defaultdict(list)
    for module in modules:
        found[key(module)].append(module)
    return {shared: tuple(alike) for shared, alike in found.items()}
