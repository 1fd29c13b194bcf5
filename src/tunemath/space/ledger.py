"""The ledger: what will change, to the last parameter, module by module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from tunemath.space.blueprint import Blueprint
    from tunemath.space.peft.change import Change, Group, Shared

__all__ = ["Ledger", "ModuleRow"]


class ModuleRow(TypedDict):
    """A module: its own shape, its parameters with what the method adds, and the trainable ones."""

    name: str
    kind: str
    shape: list[int]
    parameters: int
    trainable: int


@dataclass(frozen=True)
class Ledger:
    """The exact counts of a method on a model, in parameters; a tied one is counted once.

    ``total`` and ``trainable`` are what PEFT's ``get_nb_trainable_parameters()`` says.
    """

    blueprint: Blueprint
    change: Change

    @property
    def unmatched(self) -> tuple[str, ...]:
        """The target names asked for that matched nothing."""
        return self.change.unmatched

    @property
    def notes(self) -> tuple[str, ...]:
        """What was guessed of the model, and where PEFT's figures and the plain truth part."""
        return (*self.blueprint.notes, *self.change.notes)

    @property
    def trainable(self) -> int:
        """The trainable parameters."""
        return self._trainable

    @cached_property
    def _trainable(self) -> int:
        return _over(self.change.groups, self.change.shared) + sum(self._unfrozen.values())

    @cached_property
    def total(self) -> int:
        """All parameters of the model as the method leaves it."""
        groups = sum(
            len(g.modules) * sum(p.parameters for p in g.parts) for g in self.change.groups
        )
        shared = sum(part.parameters for each in self.change.shared for part in each.parts)
        removed = sum(self._sizes[name] for name in self.change.removed)
        return self.blueprint.parameters + groups + shared - removed

    @property
    def base(self) -> int:
        """The parameters of the model before."""
        return self.blueprint.parameters

    @property
    def percent(self) -> float:
        """100 · trainable / total."""
        return 100 * self.trainable / self.total if self.total else 0.0

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {name: prod(shape) for name, shape in self.blueprint.tensors()}

    @cached_property
    def _unfrozen(self) -> dict[str, int]:
        """The sizes of the base's own trained parameters; of tied ones the first stands for all."""
        if not self.change.unfrozen:
            return {}
        tied = self.blueprint.tied
        names = {tied.get(name, name) for name in self.change.unfrozen}
        return {name: self._sizes[name] for name in names}

    @cached_property
    def added(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """The shapes of the trained tensors that the method adds, with how many have each."""
        counts: Counter[tuple[int, ...]] = Counter()
        for group in self.change.groups:
            for part in group.parts:
                counts[part.shape] += len(group.modules) * part.trainable
        for each in self.change.shared:
            for part in each.parts:
                counts[part.shape] += part.trainable
        return tuple((shape, count) for shape, count in counts.items() if count)

    @cached_property
    def unfrozen(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """The shapes of the base's own trained tensors, with how many have each."""
        if not self.change.unfrozen:
            return ()
        shapes = dict(self.blueprint.tensors())
        return tuple(Counter(shapes[name] for name in self._unfrozen).items())

    def by_module(self) -> list[ModuleRow]:
        """Return a row a module, whose integers sum to the totals.

        A tied parameter is counted in the module that holds it first. What belongs to no module of
        the model has a row of its own.
        """
        added: dict[str, list[int]] = {}
        for group in self.change.groups:
            parameters = sum(part.parameters for part in group.parts)
            for module in group.modules:
                sums = added.setdefault(module.name, [0, 0])
                sums[0] += parameters
                sums[1] += group.trainable
        rows = list(self._own_rows(added))
        for each in self.change.shared:
            rows.append(
                ModuleRow(
                    name=each.name,
                    kind="shared",
                    shape=list(each.parts[0].shape) if each.parts else [],
                    parameters=sum(part.parameters for part in each.parts),
                    trainable=each.trainable,
                )
            )
        return rows

    def _own_rows(self, added: dict[str, list[int]]) -> Iterator[ModuleRow]:
        gone = {*self.blueprint.tied, *self.change.removed}
        for module in self.blueprint.modules:
            own = trained = 0
            start = f"{module.name}." if module.name else ""
            for name, shape in module.tensors:
                if start + name not in gone:
                    own += prod(shape)
                    trained += self._unfrozen.get(start + name, 0)
            more = added.get(module.name, (0, 0))
            yield ModuleRow(
                name=module.name,
                kind=module.kind,
                shape=list(module.shape),
                parameters=own + more[0],
                trainable=trained + more[1],
            )


def _over(groups: Sequence[Group], shared: Sequence[Shared]) -> int:
    """Return the closed forms' sum."""
    return sum(len(g.modules) * g.trainable for g in groups) + sum(s.trainable for s in shared)
