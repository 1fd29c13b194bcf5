"""Lily: low-rank factors that the layers of one name share, mixed by a router."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Change, Group, Part
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.match import find_targets, require_kinds
from tunemath.space.peft.names import shortened
from tunemath.space.peft.tuners.settings import whole

__all__ = ["lily"]

_NARROWING = ("exclude_modules", "layers_pattern", "layers_to_transform", "modules_to_save")


def lily(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return a router a layer, an A for every ``stride_A`` layers and ``num_B`` B for them all.

    Of the n layers of one target name and shape, ``⌈n / stride_A⌉`` have an A of their own and the
    first has B: ``⌈n / stride_A⌉ r d_in + num_B r d_out + n num_B r``.

    Source: Zhong et al. 2024, arXiv 2407.09946.
    """
    r, stride, b = whole(config, "r"), whole(config, "stride_A"), whole(config, "num_B", least=2)
    groups = []
    for layers in _sharing(blueprint, config):
        d_in, d_out = layers[0].d_in, layers[0].d_out
        router = Part("lily_router.weight", (b, r))
        own_a = (router, Part("lily_A.weight", (r, d_in)))
        own_both = (*own_a, Part("lily_B.weight", (b * r, d_out)))
        leaders = layers[::stride]
        followers = tuple(layer for i, layer in enumerate(layers) if i % stride)
        groups.append(Group(leaders[:1], own_both, r * (d_in + b * (d_out + 1))))
        groups.append(Group(leaders[1:], own_a, r * (d_in + b)))
        groups.append(Group(followers, (router,), r * b))
    return Change(tuple(group for group in groups if group.modules))


def _sharing(blueprint: Blueprint, config: AdapterConfig) -> list[tuple[Module, ...]]:
    """Return the targets by what they share their factors with, in the model's order."""
    targets = find_targets(blueprint, config)
    chosen = {m.name for m in require_kinds(targets, config, ("linear",))}
    layers = [m for m in blueprint.modules if m.name in chosen]
    names = _target_names(blueprint, config, targets.asked)
    if names is None:
        return _by_label(layers, lambda name: "")
    sharing = _by_label(layers, lambda name: max(_endings(name, names), key=len))
    other = _by_label(layers, lambda name: min(_endings(name, names), key=len))
    if Counter(map(_size, sharing)) != Counter(map(_size, other)):
        clash = next(e for m in layers if len(e := _endings(m.name, names)) > 1)
        raise ModelError(
            f"LILY: target_modules has {' and '.join(map(repr, clash))}, which end the names of "
            "the same layers; layers share by name, and PEFT takes either, as it happens, so the "
            "count is not determined; leave one out, or give a regular expression"
        )
    return sharing


def _by_label(layers: Iterable[Module], label: Callable[[str], str]) -> list[tuple[Module, ...]]:
    found: dict[tuple[str, tuple[int, ...]], list[Module]] = {}
    for layer in layers:
        found.setdefault((label(layer.name), layer.shape), []).append(layer)
    return [tuple(alike) for alike in found.values()]


def _endings(name: str, names: Iterable[str]) -> list[str]:
    return [each for each in names if name.endswith(each)]


def _size(layers: Sequence[Module]) -> tuple[tuple[int, ...], int]:
    return layers[0].shape, len(layers)


def _target_names(blueprint: Blueprint, config: AdapterConfig, asked: object) -> list[str] | None:
    """Return the names by which PEFT tells layers apart; None where a pattern is all there is."""
    if isinstance(asked, str):
        if asked.lower() != "all-linear":
            return None
        every = config.having(**dict.fromkeys(_NARROWING))
        names = [m.name for m in find_targets(blueprint, every).modules]
    else:
        assert isinstance(asked, Sequence)
        names = [str(name) for name in asked]
    return sorted(shortened(blueprint, names))
