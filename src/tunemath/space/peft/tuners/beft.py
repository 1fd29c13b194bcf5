"""BEFT: a bias for each value projection."""

from __future__ import annotations

from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import layers

__all__ = ["beft"]


def beft(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return BEFT's biases (1, d_out), beside those that the layers may have: ``d_out`` a layer.

    Source: arXiv 2509.15974.
    """
    groups = []
    for modules in grouped(layers(blueprint, config, "linear")).values():
        d_out = modules[0].d_out
        groups.append(Group(modules, (Part("beft_bias", (1, d_out)),), d_out))
    return Change(tuple(groups))
