"""GraLoRA: LoRA in a grid of blocks, at the parameters of LoRA."""

from __future__ import annotations

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import layers, whole

__all__ = ["gralora"]


def gralora(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return GraLoRA's blocks and its plain LoRA: ``(r + hybrid_r) (d_in + d_out)`` a layer.

    Let k be ``gralora_k``: A is (k, d_in / k, r) and B (k, r, d_out / k); k divides both widths
    and r. The plain LoRA is of rank ``hybrid_r``, which may be 0.

    Source: arXiv 2505.20355.
    """
    r, k, hybrid = (
        whole(config, "r"),
        whole(config, "gralora_k"),
        whole(config, "hybrid_r", least=0),
    )
    if r % k:
        raise ModelError(
            f"GRALORA has r {r} and gralora_k {k}; set r to a multiple of gralora_k, such as "
            f"{-(-r // k) * k}"
        )
    groups = []
    for modules in grouped(layers(blueprint, config, "linear", "conv1d")).values():
        d_in, d_out = modules[0].d_in, modules[0].d_out
        if d_in % k or d_out % k:
            raise ModelError(
                f"GRALORA cuts both widths of a layer into gralora_k {k} blocks; "
                f"{modules[0].name} takes {d_in} and gives {d_out}; set gralora_k to a divisor "
                "of both"
            )
        parts = (Part("gralora_A", (k, d_in // k, r)), Part("gralora_B", (k, r, d_out // k)))
        if hybrid:
            parts = (
                *parts,
                Part("gralora_A_general.weight", (hybrid, d_in)),
                Part("gralora_B_general.weight", (d_out, hybrid)),
            )
        groups.append(Group(modules, parts, (r + hybrid) * (d_in + d_out)))
    return Change(tuple(groups))
