"""Uni-LoRA: the whole of LoRA's parameters as one short vector, projected."""

from __future__ import annotations

from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Group, Part, Shared, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import layers, one_of, uncounted, whole

__all__ = ["unilora"]


def unilora(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return Uni-LoRA's one trained vector θ (d,), whatever the rank and the layers.

    Let d be ``theta_d_length``. Each of the ``r (d_in + d_out)`` entries of a layer's factors is
    one of θ's, scaled; which one, and the scale, are buffers in PEFT.

    Source: arXiv 2506.00799.
    """
    r, d = whole(config, "r"), whole(config, "theta_d_length")
    one_of(config, "bias", ("none", "all", "unilora_only"))
    targets = layers(blueprint, config, "linear", "conv1d")
    groups = tuple(Group(modules, (), 0) for modules in grouped(targets).values())
    theta = Shared("base_model.unilora_theta_d", (Part("unilora_theta_d", (d,)),), d)
    held = 2 * sum(r * (m.d_in + m.d_out) for m in targets)
    return Change(groups, (theta,), notes=(uncounted("the indices and scales", held),))
