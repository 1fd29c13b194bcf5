"""Names of modules, by PEFT's own rules: endings, regular expressions, layers, exclusions."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.expressions import compiled, pattern_test

__all__ = [
    "ends_in",
    "in_layers",
    "layer_of",
    "name_filter",
    "narrowing",
    "pattern_value",
    "pattern_values",
    "shortened",
    "telling_ends",
]

# From so many names on, PEFT cuts them down to the shortest endings that tell them apart.
_MANY = 20


def pattern_value(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return what ``rank_pattern`` or ``alpha_pattern`` has for a module; the first match counts.

    >>> pattern_value({"q_proj": 16, r"layers.0.*": 4}, "model.layers.0.self_attn.q_proj", 8)
    16
    """
    return pattern_values(patterns, default)(name)


def pattern_values(patterns: Mapping[str, Any], default: Any) -> Callable[[str], Any]:
    """Return the function from a name to what ``rank_pattern`` has for it."""
    tests = [(pattern_test(pattern), value) for pattern, value in patterns.items()]
    return lambda name: next((value for test, value in tests if test(name)), default)


def ends_in(name: str, wanted: Collection[str]) -> bool:
    """Whether a name is wanted, or ends in a dot and a wanted one."""
    dot = "."
    while dot:
        if name in wanted:
            return True
        _, dot, name = name.partition(".")
    return False


def name_filter(config: AdapterConfig) -> Callable[[str], bool]:
    """Return whether ``target_modules``, a regular expression, means a name."""
    pattern, keep = config["target_modules"], narrowing(config)
    try:
        wanted = compiled(pattern, pattern)
    except ModelError as error:
        raise ModelError(
            f"target_modules is a string, so a regular expression for whole names: {error}; give a "
            "list for plain names"
        ) from None
    if keep is None:
        return lambda name: wanted.fullmatch(name) is not None
    return lambda name: wanted.fullmatch(name) is not None and keep(name)


def narrowing(config: AdapterConfig) -> Callable[[str], bool] | None:
    """Return whether a name is kept, by excluded and saved modules; None where all are."""
    excluded, saved = config.get("exclude_modules"), config.get("modules_to_save")
    if not excluded and not saved:
        return None
    pattern = compiled(excluded, excluded) if isinstance(excluded, str) and excluded else None
    names = frozenset() if isinstance(excluded, str) else frozenset(excluded or ())
    inside = [compiled(rf"(^|.*\.){each}($|\..*)", each) for each in saved or ()]

    def keep(name: str) -> bool:
        if pattern is not None and pattern.fullmatch(name):
            return False
        return not ends_in(name, names) and not any(each.match(name) for each in inside)

    return keep


def in_layers(
    blueprint: Blueprint, config: AdapterConfig, names: Sequence[str]
) -> Callable[[str], bool] | None:
    """Return whether a module lies in the layers asked for; None where all do.

    A module that is asked for by its full name is taken in any layer.
    """
    layers = config.get("layers_to_transform")
    if layers is None or (isinstance(layers, list) and not layers):
        return None
    chosen = {layers} if isinstance(layers, int) else frozenset(layers)
    number, whole = layer_of(config), shortened(blueprint, names)
    return lambda name: name in whole or number(name) in chosen


def layer_of(config: AdapterConfig) -> Callable[[str], int | None]:
    """Return the function from a module's name to the layer that it lies in; None outside of them.

    That is the first number in its name, after one of ``layers_pattern`` where that is given.
    """
    given = config.get("layers_pattern") or ()
    given = [given] if isinstance(given, str) else given
    patterns = [compiled(rf"(?:^|.*?\.){each}\.(?P<idx>\d+)\.", each) for each in given]
    patterns = patterns or [re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")]

    def number(name: str) -> int | None:
        match = next((m for m in (pattern.match(name) for pattern in patterns) if m), None)
        return int(match["idx"]) if match else None

    return number


def shortened(blueprint: Blueprint, names: Sequence[str]) -> frozenset[str]:
    """Return the names as PEFT keeps them: many are cut to their shortest telling endings.

    What they match stays the same; but a name that was cut is no longer a module's full name.
    """
    wanted = frozenset(names)
    return wanted if len(wanted) < _MANY else telling_ends(blueprint, names)


def telling_ends(blueprint: Blueprint, names: Sequence[str]) -> frozenset[str]:
    """Return the shortest endings that no other module of a model has, where they are fewer."""
    wanted = frozenset(names)
    every = (*blueprint.containers, *blueprint.by_name)
    taken = {end for each in every if not ends_in(each, wanted) for end in _endings(each)}
    kept: set[str] = set()
    for endings in sorted(map(_endings, wanted)):
        if kept.isdisjoint(endings[:-1]):
            kept.update([end for end in endings if end not in taken and end not in kept][:1])
    return frozenset(kept) if kept and len(kept) < len(wanted) else wanted


def _endings(name: str) -> list[str]:
    """Return a name's endings, shortest first.

    >>> _endings("h.0.attn")
    ['attn', '0.attn', 'h.0.attn']
    """
    parts = name.split(".")
    return [".".join(parts[start:]) for start in reversed(range(len(parts)))]
