"""Super-Tuning: the largest entries of a weight, and optionally a LoRA beside them (Supra)."""

from __future__ import annotations

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import fraction, layers, whole

__all__ = ["supertuning"]


def supertuning(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return the sparse values, ``⌊(1 - sparsity) d_in d_out⌋``, and ``r (d_in + d_out)`` of LoRA.

    Source: arXiv 2607.09287.
    """
    sparsity = fraction(config, "sparsity")
    r = 0 if config["r"] is None else whole(config, "r")
    if not r and config["lora_alpha"] is not None:
        raise ModelError(
            f"SUPERTUNING: lora_alpha is {config['lora_alpha']!r} and r is None; set r for the "
            "hybrid with LoRA, or leave lora_alpha out"
        )
    groups = []
    for modules in grouped(layers(blueprint, config, "linear")).values():
        d_in, d_out = modules[0].d_in, modules[0].d_out
        kept = int(d_in * d_out * (1 - sparsity))
        if kept < 1:
            raise ModelError(
                f"SUPERTUNING: sparsity {sparsity} leaves nothing to train of the {d_in * d_out} "
                f"weights of {modules[0].name}; lower it"
            )
        parts = [Part("supertuning_values", (kept,))]
        if r:
            parts.append(Part("supertuning_lora_A.weight", (r, d_in)))
            parts.append(Part("supertuning_lora_B.weight", (d_out, r)))
        groups.append(Group(modules, tuple(parts), kept + r * (d_in + d_out)))
    return Change(tuple(groups))
