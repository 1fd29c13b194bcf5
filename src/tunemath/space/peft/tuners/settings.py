"""What the tuners' functions read of a configuration, refused in words where PEFT refuses it."""

from __future__ import annotations

from collections.abc import Sequence

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Kind, Module
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.match import find_targets, require_kinds
from tunemath.space.peft.names import pattern_value

__all__ = ["fraction", "layers", "one_of", "rank_of", "uncounted", "whole"]


def layers(blueprint: Blueprint, config: AdapterConfig, *kinds: Kind) -> tuple[Module, ...]:
    """Return the targets, which must be of these kinds."""
    return require_kinds(find_targets(blueprint, config), config, kinds)


def whole(config: AdapterConfig, name: str, least: int = 1) -> int:
    """Return a setting that must be a whole number of at least ``least``.

    >>> whole(AdapterConfig("VERA", r=16), "r")
    16
    """
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ModelError(
            f"{config.peft_type}: {name} is {value!r}; set it to a whole number of {least} or more"
        )
    return value


def rank_of(config: AdapterConfig, module: Module) -> int:
    """Return a layer's rank: what ``rank_pattern`` has for it, otherwise r."""
    patterns = config["rank_pattern"]
    if patterns:
        config = config.having(r=pattern_value(patterns, module.name, config["r"]))
    return whole(config, "r")


def fraction(config: AdapterConfig, name: str) -> float:
    """Return a setting that must lie between 0 and 1."""
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ModelError(f"{config.peft_type}: {name} is {value!r}; set it to a number from 0 to 1")
    return value


def one_of(config: AdapterConfig, name: str, known: Sequence[str]) -> str:
    """Return a setting that must be one of these words."""
    value = config[name]
    if value not in known:
        raise ModelError(
            f"{config.peft_type}: {name} is {value!r}; set it to one of {', '.join(known)}"
        )
    return value


def uncounted(what: str, numbers: int) -> str:
    """Return the note on tensors that PEFT holds as buffers, and so leaves out of its total.

    >>> uncounted("the shared random A and B", 24576)
    "PEFT's total leaves out the shared random A and B: 24,576 frozen numbers held as buffers"
    """
    return f"PEFT's total leaves out {what}: {numbers:,} frozen numbers held as buffers"
