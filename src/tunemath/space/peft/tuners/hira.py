"""HiRA: a low-rank update that multiplies the weight, so that its rank is high."""

from __future__ import annotations

from math import prod

from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.factors import refuse_groups, widths
from tunemath.space.peft.tuners.settings import layers, rank_of, whole

__all__ = ["hira"]


def hira(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return HiRA's A (r, d_in) and B (d_out, r), ``r (d_in + d_out)`` a layer, as LoRA's are.

    Of an embedding d_in is the number of rows; of a convolution A is (r, d_in, *kernel). PEFT
    0.21.2 reads ``rank_pattern`` for layers that bitsandbytes has quantised, and for no others.

    Source: Huang et al. 2025, https://openreview.net/forum?id=TwJrTz9cRS.
    """
    whole(config, "r")
    targets = layers(blueprint, config, "linear", "conv1d", "embedding", "conv")
    reads = blueprint.quantisation.startswith("bitsandbytes")

    def rank(module: Module) -> int:
        return rank_of(config, module) if reads and module.kind == "linear" else config["r"]

    groups = []
    for modules in grouped(targets, lambda m: (m[1:], rank(m))).values():
        module, r = modules[0], rank(modules[0])
        refuse_groups(config, module)
        d_in, d_out, kernel, _ = widths(config, module)
        name = "hira_embedding_{}" if module.kind == "embedding" else "hira_{}"
        parts = (
            Part(name.format("A"), (r, d_in, *kernel)),
            Part(name.format("B"), (d_out, r, *(1 for _ in kernel))),
        )
        groups.append(Group(modules, parts, r * (d_in * prod(kernel) + d_out)))
    ignored = config["rank_pattern"] and not reads
    notes = ("PEFT takes no notice of HiRA's rank_pattern: every layer has rank r",)
    return Change(tuple(groups), notes=notes if ignored else ())
