"""VB-LoRA: LoRA's factors put together from a bank of vectors that all layers share."""

from __future__ import annotations

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Group, Part, Shared, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import layers, whole

__all__ = ["vblora"]


def vblora(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return the logits that choose vectors, ``h r (d_in + d_out) / b`` a layer, and the bank.

    Let h be ``num_vectors`` and b ``vector_length``: the bank is (h, b) and held once; A's logits
    are (r, d_in / b, h) and B's (d_out / b, r, h). What is stored with ``save_only_topk_weights``
    is far less than what is trained.

    Source: Li et al. 2024, arXiv 2405.15179.
    """
    r, h, b = (whole(config, name) for name in ("r", "num_vectors", "vector_length"))
    whole(config, "topk")
    groups = []
    for modules in grouped(layers(blueprint, config, "linear", "conv1d")).values():
        d_in, d_out = modules[0].d_in, modules[0].d_out
        if d_in % b or d_out % b:
            raise ModelError(
                f"VBLORA cuts both widths of a layer into vectors of vector_length {b}; "
                f"{modules[0].name} takes {d_in} and gives {d_out}; set vector_length to a "
                "divisor of both"
            )
        parts = (
            Part("vblora_logits_A", (r, d_in // b, h)),
            Part("vblora_logits_B", (d_out // b, r, h)),
        )
        groups.append(Group(modules, parts, h * r * (d_in + d_out) // b))
    bank = Shared("base_model.vblora_vector_bank", (Part("vblora_vector_bank", (h, b)),), h * b)
    return Change(tuple(groups), (bank,))
