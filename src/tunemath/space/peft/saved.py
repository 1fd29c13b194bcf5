"""``modules_to_save``: modules that PEFT copies and trains whole, the originals frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Change, Group, Part, frozen, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tying import tied_modules

__all__ = ["saved_modules", "saved_unmatched", "with_guarded_heads", "with_saved_modules"]

# The heads that start at random, which PEFT adds for a task. Only those of sequence classification
# are added in time to keep adapters from them.
_GUARDED = {"SEQ_CLS": ("classifier", "score")}
_HEADS = {**_GUARDED, "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


def with_guarded_heads(config: AdapterConfig) -> AdapterConfig:
    """Return the configuration with the heads that its task saves and keeps from being targets."""
    if "modules_to_save" not in config or config["task_type"] not in _GUARDED:
        return config
    return config.having(modules_to_save=[*_names(config), *_GUARDED[config["task_type"]]])


def saved_unmatched(blueprint: Blueprint, config: AdapterConfig) -> tuple[str, ...]:
    """Return the ``modules_to_save`` asked for that match nothing; PEFT says nothing of them."""
    asked = [name for name in _names(config) if name not in _heads(config)]
    every = (*blueprint.containers, *blueprint.by_name) if asked else ()
    return tuple(name for name in asked if not any(each.endswith(name) for each in every))


def with_saved_modules(blueprint: Blueprint, config: AdapterConfig, change: Change) -> Change:
    """Return the change with the trained copies of ``modules_to_save``.

    Every module whose name ends so is meant, with all that lies in it; what the method put there
    is copied and frozen with the original.
    """
    names = (*_names(config), *_heads(config))
    matches = _matches(blueprint, names)
    if not matches:
        return change
    _refuse_adapted(blueprint, config, change, matches)
    inside = _inside(blueprint, matches)
    copies = {m.name: _copies(config, m.name, matches, names) for m in inside}
    groups = []
    for group in change.groups:
        for copied, alike in grouped(group.modules, lambda m: copies.get(m.name)).items():
            groups += _with_copies(replace(group, modules=alike), copied)
    own = grouped(inside, lambda m: (_own(blueprint, m, copies[m.name].root), copies[m.name][:2]))
    for (parts, (count, trained)), alike in own.items():
        size = sum(part.parameters for part in parts)
        groups.append(Group(alike, _repeated(parts, count, trained), size * trained))
    return replace(
        change,
        groups=tuple(groups),
        unfrozen=frozenset(n for n in change.unfrozen if n.rpartition(".")[0] not in copies),
    )


def saved_modules(blueprint: Blueprint, config: AdapterConfig) -> frozenset[str]:
    """Return the names of all modules that ``modules_to_save`` or the task's head copies."""
    matches = _matches(blueprint, (*_names(config), *_heads(config)))
    return frozenset(m.name for m in _inside(blueprint, matches))


class _Copies(NamedTuple):
    """How often a module is copied, how many copies are trained, and the outermost match."""

    number: int
    trained: int
    root: str = ""


def _heads(config: AdapterConfig) -> tuple[str, ...]:
    if "modules_to_save" not in config:
        return ()
    return _HEADS.get(config["task_type"] or "", ())


def _names(config: AdapterConfig) -> tuple[str, ...]:
    asked = config.get("modules_to_save") or ()
    if not all(isinstance(name, str) and name for name in asked):
        raise ModelError(
            f"{config.peft_type}: modules_to_save is {asked!r}; set it to a list of names"
        )
    return tuple(asked)


def _matches(blueprint: Blueprint, names: tuple[str, ...]) -> dict[str, None]:
    """Return the names that end in one of these; no dot is asked for before the ending."""
    if not names:
        return {}
    every = (*blueprint.containers, *blueprint.by_name)
    matches = dict.fromkeys(name for name in every if name.endswith(names))
    lists = _lists(blueprint) if matches.keys() & set(blueprint.containers) else ()
    for name in matches:
        if name in lists:
            raise ModelError(
                f"modules_to_save match {name}, a list of layers, which PEFT can't copy; name what "
                f"lies in it, such as {name}.0"
            )
    return matches


def _inside(blueprint: Blueprint, matches: dict[str, None]) -> list[Module]:
    """Return the modules of these names, and those that lie in them."""
    starts = tuple(f"{name}." for name in matches)
    return [m for m in blueprint.modules if m.name in matches or m.name.startswith(starts)]


def _lists(blueprint: Blueprint) -> frozenset[str]:
    """Return the containers whose children are blocks by number: torch's ModuleLists.

    A Sequential is told from them by its children, which are layers.
    """
    blocks: dict[str, bool] = {}
    containers = frozenset(blueprint.containers)
    for name in (*blueprint.containers, *blueprint.by_name):
        parent, _, child = name.rpartition(".")
        if parent in containers:
            is_block = child.isdigit() and name in containers
            blocks[parent] = blocks.get(parent, True) and is_block
    return frozenset(name for name, are_blocks in blocks.items() if are_blocks)


def _refuse_adapted(
    blueprint: Blueprint, config: AdapterConfig, change: Change, matches: dict[str, None]
) -> None:
    """Raise where a layer is adapted and copied too, or follows an embedding that is copied."""
    copied = set(matches)
    if config.get("ensure_weight_tying") and blueprint.embedding in copied:
        copied.update(tied_modules(blueprint))
    for module in change.targets:
        if module.name in copied:
            raise ModelError(
                f"{config.peft_type}: {module.name} is adapted, and copied by modules_to_save or "
                f"as the head of task {config['task_type']}; PEFT can't do both: leave it out of "
                "the targets (an adapter_config.json has exclude_modules for it), or give full "
                "names in modules_to_save"
            )


def _copies(
    config: AdapterConfig, name: str, matches: dict[str, None], names: tuple[str, ...]
) -> _Copies:
    """Return how often a module is copied by the matches that it lies in.

    A match inside another is copied out of the first copy. For tasks with a head PEFT goes through
    the names twice, and finds those inside the first copy again.
    """
    chain = [each for each in _ancestors(name) if each in matches]
    if len(chain) < 2:
        return _Copies(len(chain), len(chain), chain[0] if chain else "")
    outer, inner = chain[:2]
    late = _heads(config) and config["task_type"] not in _GUARDED
    if len(chain) > 2 or (late and outer.endswith(_heads(config))):
        raise ModelError(
            f"modules_to_save match {', '.join(chain)}, one inside the other; name only {outer}"
        )
    within = inner.removeprefix(f"{outer}.")
    if _heads(config) and within.endswith(names):
        return _Copies(3, 2, outer)
    return _Copies(1 if within.count(".") == 1 else 2, 1, outer)


def _ancestors(name: str) -> Iterator[str]:
    """Yield the names of what a module lies in, outermost first, and its own.

    >>> list(_ancestors("h.0.attn"))
    ['h', 'h.0', 'h.0.attn']
    """
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _own(blueprint: Blueprint, module: Module, root: str) -> tuple[Part, ...]:
    """Return a module's own parameters; one that is tied inside the copy is copied once."""
    parts = []
    for name, shape in module.tensors:
        holder = blueprint.tied.get(f"{module.name}.{name}", "").rpartition(".")[0]
        if not holder or root not in _ancestors(holder):
            parts.append(Part(f"modules_to_save.{name}", shape))
    return tuple(parts)


def _with_copies(group: Group, copies: _Copies | None) -> Iterator[Group]:
    """Yield what a method put into copied modules: frozen where it was, trained in the copies."""
    if copies is None:
        yield group
        return
    yield frozen(group)
    inner = tuple(Part(f"modules_to_save.{part.name}", part.shape) for part in group.parts)
    size = sum(part.parameters for part in inner)
    yield Group(
        group.modules, _repeated(inner, copies.number, copies.trained), size * copies.trained
    )


def _repeated(parts: Sequence[Part], count: int, trained: int) -> tuple[Part, ...]:
    """Return the parts of so many copies, of which so many are trained."""
    return tuple(part._replace(trainable=at < trained) for at in range(count) for part in parts)
