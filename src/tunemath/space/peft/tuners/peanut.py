"""PEANuT: the update is a small network's answer to the weight itself."""

from __future__ import annotations

from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import layers, whole

__all__ = ["peanut"]


def peanut(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return A (r, d_out), B (d_out, r) and 2l layers (r, r) between: ``2 r (d_out + l r)``.

    Source: Zhong et al. 2024, arXiv 2410.01870.
    """
    r, depth = whole(config, "r"), whole(config, "depth", least=0)
    between = tuple(
        Part(f"peanut_{side}.{i}.weight", (r, r))
        for side in ("encoders", "decoders")
        for i in range(depth)
    )
    groups = []
    for modules in grouped(layers(blueprint, config, "linear")).values():
        d_out = modules[0].d_out
        parts = (Part("peanut_A.weight", (r, d_out)), Part("peanut_B.weight", (d_out, r)), *between)
        groups.append(Group(modules, parts, 2 * r * (d_out + depth * r)))
    return Change(tuple(groups))
