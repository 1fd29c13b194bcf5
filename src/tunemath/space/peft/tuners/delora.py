"""DeLoRA: LoRA with its strength in one trained number, apart from its direction."""

from __future__ import annotations

from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import layers, rank_of

__all__ = ["delora"]


def delora(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return DeLoRA's A (r, d_in), B (d_out, r) and bound λ (1,): ``r (d_in + d_out) + 1``.

    Source: arXiv 2503.18225.
    """
    targets = layers(blueprint, config, "linear")
    groups = []
    for modules in grouped(targets, lambda m: (m[1:], rank_of(config, m))).values():
        r, d_in, d_out = rank_of(config, modules[0]), modules[0].d_in, modules[0].d_out
        parts = (
            Part("delora_A", (r, d_in)),
            Part("delora_B", (d_out, r)),
            Part("delora_lambda", (1,)),
        )
        groups.append(Group(modules, parts, r * (d_in + d_out) + 1))
    return Change(tuple(groups))
