"""VeRA and PVeRA: two trained vectors a layer, around random matrices that all layers share."""

from __future__ import annotations

from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import layers, uncounted, whole

__all__ = ["pvera", "vera"]


def vera(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return VeRA's scales λ_d (r,) and λ_b (d_out,): ``d_out + r`` a layer.

    A (r, max d_in) and B (max d_out, r) are random, frozen and shared; PEFT holds them as buffers.

    Source: Kopiczko et al. 2023, arXiv 2310.11454.
    """
    r = whole(config, "r")
    return _scales(blueprint, config, "vera", r, r)


def pvera(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return PVeRA's scales λ_d (2r,), for mean and variance, and λ_b (d_out,): ``d_out + 2r``.

    A (2r, max d_in) and B (max d_out, r) are random, frozen and shared, as in VeRA.

    Source: arXiv 2512.07703.
    """
    r = whole(config, "r")
    return _scales(blueprint, config, "pvera", 2 * r, r)


def _scales(blueprint: Blueprint, config: AdapterConfig, name: str, inner: int, r: int) -> Change:
    """Return the two scales, λ_d of width ``inner``, and say what the shared matrices hold."""
    targets = layers(blueprint, config, "linear", "conv1d")
    groups = []
    for modules in grouped(targets).values():
        d_out = modules[0].d_out
        parts = (Part(f"{name}_lambda_b", (d_out,)), Part(f"{name}_lambda_d", (inner,)))
        groups.append(Group(modules, parts, d_out + inner))
    widest_in, widest_out = max(m.d_in for m in targets), max(m.d_out for m in targets)
    shared = inner * widest_in + r * widest_out
    return Change(tuple(groups), notes=(uncounted("the shared random A and B", shared),))
