"""RandLoRA: an update of full rank, a sum of scaled random factors."""

from __future__ import annotations

from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import layers, uncounted, whole

__all__ = ["randlora"]


def randlora(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return RandLoRA's scales Λ (r, n) and Γ (n, d) of its n random factors: ``n (r + d)``.

    Let d = min(d_in, d_out) and n = ⌈d / r⌉, as many factors of rank r as full rank takes, so that
    a larger r trains fewer parameters. The random matrices are frozen and shared; PEFT holds them
    as buffers.

    Source: arXiv 2502.00987.
    """
    r = whole(config, "r")
    targets = layers(blueprint, config, "linear", "conv1d")
    groups = []
    for modules in grouped(targets).values():
        d = min(modules[0].d_in, modules[0].d_out)
        n = -(-d // r)
        parts = (Part("randlora_lambda", (r, n)), Part("randlora_gamma", (n, d)))
        groups.append(Group(modules, parts, n * (r + d)))
    widest = max(m.d_in for m in targets), max(m.d_out for m in targets)
    d = min(widest)
    shared = r * d + max(widest) * -(-d // r) * r
    return Change(tuple(groups), notes=(uncounted("the shared random A and B", shared),))
