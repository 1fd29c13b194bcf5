"""Polytropon and multi-head routing: an inventory of LoRA skills, mixed for each task."""

from __future__ import annotations

from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import layers, one_of, whole

__all__ = ["poly"]


def poly(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return k skills of LoRA a layer and the router, ``k r (d_in + d_out) + t s k``.

    Let t be ``n_tasks``, k ``n_skills`` and s ``n_splits``: the router is (t, s k), A is (s, k,
    d_in / s, r) and B (s, k, r, d_out / s).

    Valid when s divides both widths; PEFT cuts what is left over off, and fails in the first step.

    Source: Ponti et al. 2022, arXiv 2202.13914; splits from Caccia et al. 2022, arXiv 2211.03831.
    """
    r, t, k, s = (whole(config, n) for n in ("r", "n_tasks", "n_skills", "n_splits"))
    one_of(config, "poly_type", ("poly",))
    groups, uneven = [], []
    for modules in grouped(layers(blueprint, config, "linear")).values():
        d_in, d_out = modules[0].d_in, modules[0].d_out
        a, b = d_in // s, d_out // s
        parts = (
            Part("poly_lora_A", (s, k, a, r)),
            Part("poly_lora_B", (s, k, r, b)),
            Part("poly_router.module_logits", (t, s * k)),
        )
        groups.append(Group(modules, parts, s * k * (r * (a + b) + t)))
        if d_in % s or d_out % s:
            uneven.append(
                f"n_splits {s} does not divide the {d_in} inputs and {d_out} outputs of "
                f"{modules[0].name}: PEFT makes the adapter, which then fails in its first step"
            )
    return Change(tuple(groups), notes=tuple(uneven))
