"""FourierFT, WaveFT and C3A: updates that are few numbers in another basis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.expressions import compiled
from tunemath.space.peft.names import pattern_value
from tunemath.space.peft.tuners.settings import layers, one_of, whole
from tunemath.space.peft.tuners.targets import patterns_of

__all__ = ["c3a", "fourierft", "waveft"]

# Daubechies, symlets and coiflets, each from the first to the last that PEFT has.
_WAVELETS = {"db": (1, 38), "sym": (2, 20), "coif": (1, 17)}


def fourierft(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return FourierFT's ``n`` coefficients a layer, n being ``n_frequency``, at most d_in d_out.

    Source: Gao et al. 2024, arXiv 2405.03003.
    """
    patterns = patterns_of(config, "n_frequency_pattern")
    targets = layers(blueprint, config, "linear", "conv1d")
    asked = {m.name: _dotted_value(patterns, m.name, config["n_frequency"]) for m in targets}
    return _coefficients(config, targets, asked, "fourierft_spectrum")


def waveft(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return WaveFT's ``n`` coefficients a layer, n being ``n_frequency``, at most d_in d_out.

    With ``proportional_parameters`` the mean of n is ``n_frequency``, and each layer has its share
    by d_in d_out, rounded, and at least 1; patterns are not looked at.

    Source: Bilican et al. 2025, arXiv 2505.12532.
    """
    _require_wavelet(config["wavelet_family"])
    targets = layers(blueprint, config, "linear", "conv1d")
    if config["proportional_parameters"]:
        asked = _shares(targets, whole(config, "n_frequency"))
    else:
        patterns = patterns_of(config, "n_frequency_pattern")
        asked = {m.name: pattern_value(patterns, m.name, config["n_frequency"]) for m in targets}
    return _coefficients(config, targets, asked, "waveft_spectrum")


def c3a(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return C3A's circulant blocks, held by their first rows: ``d_in d_out / b`` a layer.

    Let b be ``block_size``, which divides both widths: the kernel is (d_out / b, d_in / b, b).

    Source: Chen et al. 2024, arXiv 2407.19342.
    """
    if not isinstance(config["init_weights"], bool):
        one_of(config, "init_weights", ("gaussian", "kaiming_uniform", "xavier_uniform"))
    patterns = patterns_of(config, "block_size_pattern")
    targets = layers(blueprint, config, "linear")
    asked = {m.name: _dotted_value(patterns, m.name, config["block_size"]) for m in targets}
    sizes = _whole_numbers(config, "block_size", asked)
    groups = []
    for modules in grouped(targets, lambda m: (m[1:], sizes[m.name])).values():
        b, d_in, d_out = sizes[modules[0].name], modules[0].d_in, modules[0].d_out
        if d_in % b or d_out % b:
            raise ModelError(
                f"C3A has block_size {b}, and {modules[0].name} takes {d_in} and gives {d_out}; "
                "set block_size to a divisor of both"
            )
        parts = (Part("c3a_kernel", (d_out // b, d_in // b, b)),)
        groups.append(Group(modules, parts, d_in * d_out // b))
    return Change(tuple(groups))


def _coefficients(
    config: AdapterConfig, targets: tuple[Module, ...], asked: Mapping[str, Any], name: str
) -> Change:
    """Return the coefficients, of which a layer can't have more than its weight has entries."""
    numbers = _whole_numbers(config, "n_frequency", asked)
    groups = []
    for modules in grouped(targets, lambda m: (m[1:], numbers[m.name])).values():
        n, most = numbers[modules[0].name], modules[0].d_in * modules[0].d_out
        if n > most:
            raise ModelError(
                f"{config.peft_type} has n_frequency {n} for {modules[0].name}, whose weight has "
                f"{most} entries; set it to at most as many"
            )
        groups.append(Group(modules, (Part(name, (n,)),), n))
    return Change(tuple(groups))


def _whole_numbers(config: AdapterConfig, name: str, asked: Mapping[str, Any]) -> dict[str, int]:
    """Return what is asked for each layer, which must be whole numbers of at least 1."""
    different = {repr(value): value for value in asked.values()}
    checked = {key: whole(config.having(**{name: each}), name) for key, each in different.items()}
    return {layer: checked[repr(value)] for layer, value in asked.items()}


def _shares(targets: tuple[Module, ...], mean: int) -> dict[str, int]:
    """Return each layer's share of the coefficients, by PEFT's own order of rounding."""
    entries = {m.name: m.d_in * m.d_out for m in targets}
    total, budget = sum(entries.values()), mean * len(targets)
    return {name: max(1, round(number / total * budget)) for name, number in entries.items()}


def _dotted_value(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return what a pattern says of a layer, by PEFT's older rule.

    The first that matches the end of the name after a dot counts; a name of its own counts whole.

    >>> _dotted_value({"v": 2, "h.q": 3}, "h.v", 1), _dotted_value({"h.q": 3}, "h.q", 1)
    (2, 3)
    """
    for pattern, value in patterns.items():
        if compiled(rf".*\.{pattern}$", pattern).match(name):
            return value
    return patterns.get(name, default)


def _require_wavelet(family: Any) -> None:
    """Refuse a wavelet that PEFT does not have."""
    known = {
        f"{name}{i}" for name, (first, last) in _WAVELETS.items() for i in range(first, last + 1)
    }
    if family not in known:
        ranges = ", ".join(f"{name}{a} to {name}{b}" for name, (a, b) in _WAVELETS.items())
        raise ModelError(f"WAVEFT: wavelet_family is {family!r}; set it to one of {ranges}")
