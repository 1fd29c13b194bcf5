"""TinyLoRA: a few numbers, projected into the small square between two frozen factors."""

from __future__ import annotations

from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Change, Group, Part, Shared, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import fraction, layers, uncounted, whole

__all__ = ["tinylora"]


def tinylora(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return TinyLoRA's trained vectors v (u,), one for each of g groups of layers: ``g u``.

    Let n be the number of layers and w ``weight_tying``: ``g = max(1, round(n (1 − w)))``, halves
    to even, so that every layer has its own at 0 and all share one at 1. The factors A (r, d_in)
    and B (d_out, r), of the weight's singular vectors, and P (u, r, r) are frozen, and buffers in
    PEFT.

    Source: arXiv 2602.04118.
    """
    r, u = whole(config, "r"), whole(config, "u")
    tying = fraction(config, "weight_tying")
    targets = layers(blueprint, config, "linear", "conv1d", "embedding")
    g = max(1, round(len(targets) * (1.0 - tying)))
    groups = tuple(Group(modules, (), 0) for modules in grouped(targets).values())
    vectors = Shared(
        "base_model.tinylora_v", tuple(Part(f"tinylora_v.{i}", (u,)) for i in range(g)), g * u
    )
    held = sum(_frozen(m, r, u) for m in targets)
    return Change(groups, (vectors,), notes=(uncounted("A, B and P of each layer", held),))


def _frozen(module: Module, r: int, u: int) -> int:
    """Return the numbers in A, B and P; the rank is at most that of the weight."""
    r = min(r, module.d_in, module.d_out)
    return r * (module.d_in + module.d_out) + u * r * r
