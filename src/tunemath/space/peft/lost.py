"""Settings that name what a model does not have: PEFT passes over them, so here they are said."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.expressions import compiled, pattern_test
from tunemath.space.peft.match import near_to
from tunemath.space.peft.names import ends_in, layer_of

__all__ = ["lost_settings"]

_PATTERNS = ("rank_pattern", "alpha_pattern", "n_frequency_pattern", "block_size_pattern")
_FIELDS = (*_PATTERNS, "exclude_modules", "feedforward_modules", "use_bdlora")


def lost_settings(
    blueprint: Blueprint, config: AdapterConfig, adapted: Callable[[], Collection[str]]
) -> Iterator[str]:
    """Yield a sentence on each setting without effect: patterns, exclusions, layers, sides.

    ``adapted`` gives the full names of the modules and parameters that the method adapts.
    """
    yield from _lost_layers(blueprint, config)
    if not any(config.get(field) for field in _FIELDS):
        return
    names = adapted()
    for field in _PATTERNS:
        for pattern in config.get(field) or ():
            if not any(map(_test(config, field, pattern), names)):
                yield _without_effect(field, pattern, "matches nothing that is adapted", names)
    yield from _lost_exclusions(blueprint, config)
    for field, ends in _sides(config):
        for end in ends:
            if not any(end in name for name in names):
                yield _without_effect(field, end, "is in the name of nothing adapted", names)


def _test(config: AdapterConfig, field: str, pattern: str) -> Callable[[str], Any]:
    if config.peft_type == "OSF":
        return compiled(pattern, pattern).search
    if config.peft_type == "ADALORA" and field == "rank_pattern":
        return bool  # which singular values are kept, by the names of AdaLoRA's own parameters
    return pattern_test(pattern)


def _lost_exclusions(blueprint: Blueprint, config: AdapterConfig) -> Iterator[str]:
    excluded = config.get("exclude_modules")
    if not excluded:
        return
    every = (*blueprint.containers, *blueprint.by_name)
    if isinstance(excluded, str):
        if not any(map(compiled(excluded, excluded).fullmatch, every)):
            yield _without_effect("exclude_modules", excluded, "matches no whole name", ())
        return
    for name in excluded:
        if not any(ends_in(each, {name}) for each in every):
            yield _without_effect("exclude_modules", name, "matches nothing in this model", every)


def _lost_layers(blueprint: Blueprint, config: AdapterConfig) -> Iterator[str]:
    layers, targets = config.get("layers_to_transform"), config.get("target_modules")
    if layers in (None, []):
        return
    if isinstance(targets, str) and targets.lower() != "all-linear":
        yield (
            f"layers_to_transform has no effect beside target_modules {targets!r:.60}: PEFT adapts "
            "every layer that the expression matches; say the layers in it"
        )
        return
    number = layer_of(config)
    has = {n for name in blueprint.by_name if (n := number(name)) is not None}
    asked = [layers] if isinstance(layers, int) else layers
    beyond = [str(layer) for layer in asked if layer not in has]
    if beyond and has:
        yield (
            f"layers_to_transform has {', '.join(beyond)}, and the model's layers are {min(has)} "
            f"to {max(has)}; leave out those that it does not have"
        )


def _sides(config: AdapterConfig) -> Iterator[tuple[str, Collection[str]]]:
    """Yield lists of parts of names that say how an adapted module is treated."""
    feedforward = config.get("feedforward_modules")
    if feedforward and not isinstance(feedforward, str):
        yield "feedforward_modules", feedforward
    blocks = config.get("use_bdlora")
    if isinstance(blocks, Mapping):
        for side in ("target_modules_bd_a", "target_modules_bd_b"):
            yield f"use_bdlora.{side}", blocks.get(side) or ()


def _without_effect(field: str, name: str, why: str, names: Collection[str]) -> str:
    near = near_to(name, names)
    hint = f"; near it: {', '.join(near)}" if near else ""
    return (
        f"{field} has {name!r}, which {why} and so has no effect{hint}; correct it or leave it out"
    )
