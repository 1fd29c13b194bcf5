"""SHiRA: as many single entries of the weight as LoRA has parameters."""

from __future__ import annotations

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import layers, whole

__all__ = ["shira"]


def shira(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return SHiRA's trained entries: ``r (d_in + d_out)`` a layer, at most ``d_in d_out``.

    Source: Bhardwaj et al. 2024, arXiv 2406.13175.
    """
    r = whole(config, "r")
    groups = []
    for modules in grouped(layers(blueprint, config, "linear")).values():
        d_in, d_out = modules[0].d_in, modules[0].d_out
        entries = r * (d_in + d_out)
        if entries > d_in * d_out:
            raise ModelError(
                f"SHIRA has r {r}, so {entries} entries of {modules[0].name}, which has "
                f"{d_in * d_out}; set r to at most {d_in * d_out // (d_in + d_out)}"
            )
        groups.append(Group(modules, (Part("shira_weight", (entries,)),), entries))
    return Change(tuple(groups))
