"""Which modules a configuration means, by PEFT's own rules.

A list of names matches the module of that full name, and every module whose name ends in a dot and
one of them; a string is a regular expression for the whole name; ``all-linear`` is every linear
layer but the head. Excluded names and ``modules_to_save`` never match.

``require_kinds(find_targets(blueprint, config), config, ("linear",))`` gives the modules that a
tuner adapts, and refuses what PEFT refuses: nothing matched, a block, a layer of another kind.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Kind, Module
from tunemath.space.peft.config import AdapterConfig, default_targets
from tunemath.space.peft.names import (
    ends_in,
    in_layers,
    name_filter,
    narrowing,
)

__all__ = [
    "Targets",
    "find_targets",
    "near_names",
    "near_to",
    "require_kinds",
    "unmatched_targets",
]

_CLASSIFIERS = ("score", "classifier")
# State-space layers that are no plain linear layers, whatever their class.
_MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
_NOT_IN_MAMBA = ("out_proj", "conv1d")
_LIKE_LORA = ("LORA", "ADALORA", "XLORA", "RANDLORA")


@dataclass(frozen=True)
class Targets:
    """What a configuration's target names met in a model."""

    modules: tuple[Module, ...]
    """The modules that own parameters and match."""
    containers: tuple[str, ...] = ()
    """The containers that match: blocks, not layers."""
    unmatched: tuple[str, ...] = ()
    """The names asked for that no module has; default targets are not asked for."""
    asked: Any = None
    """The targets as they were used: given, or PEFT's for the model type."""


def find_targets(blueprint: Blueprint, config: AdapterConfig) -> Targets:
    """Return what ``target_modules`` means in this model.

    Where none are given, PEFT's defaults for the model type are taken; where PEFT has none, that
    is an error, as it is there, unless ``target_parameters`` are given.
    """
    asked = _asked(blueprint, config)
    if asked is None:
        return Targets(())
    if isinstance(asked, str) and asked.lower() == "all-linear":
        found = _all_linear(blueprint, config)
    elif isinstance(asked, str):
        found = _by_pattern(blueprint, config.having(target_modules=asked))
    else:
        found = _by_names(blueprint, config, asked)
    _refuse_state_space(blueprint, config, found)
    return Targets(found.modules, found.containers, unmatched_targets(blueprint, config), asked)


def require_kinds(
    targets: Targets, config: AdapterConfig, kinds: Collection[Kind]
) -> tuple[Module, ...]:
    """Return the modules that match, which must all be of these kinds.

    Raises `ModelError` where PEFT refuses: nothing matches, a container does (a block is no
    layer), or a layer of a kind that the tuner can't adapt.
    """
    if not targets.modules and not targets.containers:
        raise ModelError(
            f"{config.peft_type}: target_modules {targets.asked!r} match no module of this model "
            "that is neither excluded nor in modules_to_save; give names that it has"
        )
    if targets.containers:
        raise ModelError(
            f"{config.peft_type}: target_modules match {targets.containers[0]}, a block of layers; "
            f"expected layers ({', '.join(kinds)}); name the layers inside it"
        )
    for module in targets.modules:
        if module.kind not in kinds:
            raise ModelError(
                f"{config.peft_type}: target_modules match {module.name}, whose kind is "
                f"{module.kind}; expected {', '.join(kinds)}; leave it out"
            )
    return targets.modules


def unmatched_targets(blueprint: Blueprint, config: AdapterConfig) -> tuple[str, ...]:
    """Return the target names asked for that no module has; default targets are not asked for.

    A regular expression, or all the names together, that match nothing is an error of its own.
    """
    asked = config.get("target_modules")
    if asked is None or isinstance(asked, str):
        return ()
    return tuple(name for name in dict.fromkeys(asked) if not _exists(blueprint, name))


def near_names(blueprint: Blueprint, name: str, most: int = 3) -> list[str]:
    """Return the names of a model's modules that are most like one that it doesn't have."""
    return near_to(name, blueprint.by_name, most)


def near_to(name: str, names: Iterable[str], most: int = 3) -> list[str]:
    """Return those of some names that are most like one, from as far back as it goes.

    >>> near_to("attn.q_prj", ["h.0.attn.q_proj", "h.1.attn.q_proj", "h.0.mlp.up"])
    ['attn.q_proj']
    """
    parts = name.count(".") + 1
    known = dict.fromkeys(".".join(each.split(".")[-parts:]) for each in names)
    return difflib.get_close_matches(name, known, n=most)


# --- what is asked for


def _asked(blueprint: Blueprint, config: AdapterConfig) -> Any:
    """Return the targets given, or PEFT's for the model type; None for parameters alone."""
    asked = config["target_modules"]
    if asked is None:
        asked = default_targets(config.peft_type, blueprint.model_type)
    if asked is None and not config.get("target_parameters"):
        raise ModelError(
            f"PEFT has no default targets for {config.peft_type} on model type "
            f"{blueprint.model_type!r}; give target_modules, such as {_examples(blueprint)}"
        )
    if asked is None or isinstance(asked, str):
        return asked
    return list(dict.fromkeys(map(str, asked)))


def _examples(blueprint: Blueprint) -> str:
    return ", ".join(dict.fromkeys(m.short_name for m in blueprint.linears)) or "its layers' names"


def _by_pattern(blueprint: Blueprint, config: AdapterConfig) -> Targets:
    meant = name_filter(config)
    return Targets(
        tuple(m for m in blueprint.modules if meant(m.name)),
        tuple(n for n in _plain_containers(blueprint) if meant(n)),
    )


def _all_linear(blueprint: Blueprint, config: AdapterConfig) -> Targets:
    """Return every linear layer but the head, or but the classifier in sequence classification."""
    linears = blueprint.linears
    if not blueprint.head and config["task_type"] == "SEQ_CLS":
        left_out = next((n for n in _CLASSIFIERS if _exists_at_top(blueprint, n)), None)
        linears = tuple(m for m in linears if m.name != left_out)
    whole = narrowing(config) is None and config.get("layers_to_transform") is None
    if whole and not _ends_elsewhere(blueprint, linears):
        return Targets(linears)
    return _by_names(blueprint, config, [m.name for m in linears])


def _ends_elsewhere(blueprint: Blueprint, linears: Iterable[Module]) -> bool:
    """Whether the name of a linear layer may also be the ending of another's.

    PEFT turns ``all-linear`` into the full names of layers, and then matches endings.
    """
    starts = {module.name.partition(".")[0] for module in linears}
    inner = tuple(f".{start}" for start in starts)
    return any(part in m.name for m in blueprint.modules for part in inner)


def _by_names(blueprint: Blueprint, config: AdapterConfig, names: Sequence[str]) -> Targets:
    wanted = frozenset(names)
    shorts = dict.fromkeys(name.rpartition(".")[2] for name in names)
    modules: list[Module] = []
    for short in shorts:
        alike = blueprint.by_short_name.get(short, ())
        modules += alike if short in wanted else (m for m in alike if ends_in(m.name, wanted))
    containers = [
        name
        for name in _plain_containers(blueprint)
        if name.rpartition(".")[2] in shorts and ends_in(name, wanted)
    ]
    for keep in (in_layers(blueprint, config, names), narrowing(config)):
        if keep is not None:
            modules = [m for m in modules if keep(m.name)]
            containers = [c for c in containers if keep(c)]
    return Targets(tuple(modules), tuple(containers))


def _plain_containers(blueprint: Blueprint) -> Iterator[str]:
    """Yield the containers that own no parameters themselves."""
    owners = blueprint.by_name
    return (name for name in blueprint.containers if name not in owners)


def _exists(blueprint: Blueprint, name: str) -> bool:
    """Whether a module or a container has this name, or ends in a dot and this name."""
    if name in blueprint.by_short_name or name in blueprint.by_name:
        return True
    alike = blueprint.by_short_name.get(name.rpartition(".")[2], ())
    ending = f".{name}"
    return any(m.name.endswith(ending) for m in alike) or any(
        each == name or each.endswith(ending) for each in blueprint.containers
    )


def _exists_at_top(blueprint: Blueprint, name: str) -> bool:
    return name in blueprint.by_name or name in blueprint.containers


def _refuse_state_space(blueprint: Blueprint, config: AdapterConfig, found: Targets) -> None:
    if config.peft_type not in _LIKE_LORA or blueprint.model_type not in _MAMBA:
        return
    for module in found.modules:
        if module.short_name in _NOT_IN_MAMBA:
            raise ModelError(
                f"{config.peft_type}: target_modules match {module.name}, which {config.peft_type} "
                f"can't adapt in {blueprint.model_type}; leave {' and '.join(_NOT_IN_MAMBA)} out"
            )
