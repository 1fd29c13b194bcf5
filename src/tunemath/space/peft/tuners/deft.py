"""DEFT: a subspace of the weight is taken out and another content put in."""

from __future__ import annotations

from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import layers, one_of, whole

__all__ = ["deft"]


def deft(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return the projection P (d_out, r) and the injection R (r, d_in): ``r (d_in + d_out)``.

    r is at most d_out. PaRa has no injection: ``r d_out``.

    Source: Kumar et al. 2025, arXiv 2509.22793.
    """
    one_of(config, "decomposition_method", ("relu", "qr"))
    groups = []
    for modules in grouped(layers(blueprint, config, "linear", "conv1d")).values():
        d_in, d_out = modules[0].d_in, modules[0].d_out
        r = min(whole(config, "r"), d_out)
        parts = [Part("deft_P", (d_out, r))]
        if not config["para"]:
            parts.append(Part("deft_R", (r, d_in)))
        groups.append(Group(modules, tuple(parts), r * (d_out + (0 if config["para"] else d_in))))
    return Change(tuple(groups))
