"""RoAd: the outputs of a layer rotated and scaled in pairs."""

from __future__ import annotations

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import layers, one_of, whole

__all__ = ["road"]

# The trained angles, and as many scales, of a pair of outputs.
_ANGLES = {"road_1": 1, "road_2": 2, "road_4": 4}


def road(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return RoAd's angles θ and scales α: ``v d_out`` a layer, v being 1, 2 or 4 by variant.

    Outputs are paired within groups of ``group_size``, which must divide d_out.

    Source: Liao and Monz 2024, arXiv 2409.00119.
    """
    v = _ANGLES[one_of(config, "variant", tuple(_ANGLES))]
    size = whole(config, "group_size")
    if size % 2:
        raise ModelError(f"ROAD has group_size {size}; set it to an even number, for pairs")
    groups = []
    for modules in grouped(layers(blueprint, config, "linear")).values():
        d_out = modules[0].d_out
        if d_out % size:
            raise ModelError(
                f"ROAD has group_size {size}, and {modules[0].name} gives {d_out}; set group_size "
                "to an even divisor of it"
            )
        half = (v * d_out // 2,)
        parts = (Part("road_theta", half), Part("road_alpha", half))
        groups.append(Group(modules, parts, v * d_out))
    return Change(tuple(groups))
