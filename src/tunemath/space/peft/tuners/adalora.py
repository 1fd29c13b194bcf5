"""AdaLoRA: LoRA as a singular value decomposition, whose ranks are cut down while training."""

from __future__ import annotations

from math import prod

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.parameters import find_parameters
from tunemath.space.peft.tuners.factors import widths
from tunemath.space.peft.tuners.lora_variants import refuse_settings
from tunemath.space.peft.tuners.settings import layers, whole
from tunemath.space.peft.tuners.targets import require_dimensions
from tunemath.space.peft.tying import with_tied_targets

__all__ = ["adalora"]


def adalora(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return P (d_out, r), Λ (r, 1) and Q (r, d_in), ``r (d_in + d_out + 1)``, at the initial rank.

    Let r be ``init_r``; of a convolution d_in is its inputs times its kernel. Cutting the ranks
    sets singular values to 0 and changes no count.

    Source: Zhang et al. 2023, arXiv 2303.10512.
    """
    refuse_settings(config)
    _refuse(blueprint, config)
    config, _ = with_tied_targets(blueprint, config)
    r = whole(config, "init_r", least=0)
    targets = layers(blueprint, config, "linear", "conv1d", "conv")
    groups, notes = [], []
    for modules in grouped(require_dimensions(targets, config, 2)).values():
        channels, d_out, kernel, split = widths(config, modules[0])
        d_in = channels * prod(kernel)
        parts = (
            Part("lora_A", (r, d_in)),
            Part("lora_E", (r, 1)),
            Part("lora_B", (d_out, r)),
            Part("ranknum", (1,), trainable=False),
        )
        groups.append(Group(modules, parts, r * (d_in + d_out + 1)))
        if split > 1:
            notes.append(
                f"{modules[0].name} is a convolution of {split} groups: PEFT makes the adapter, "
                "which then fails in its first step"
            )
    notes.append(f"PEFT's total has the rank itself, a number for each of {len(targets)} layers")
    return Change(tuple(groups), notes=tuple(notes))


def _refuse(blueprint: Blueprint, config: AdapterConfig) -> None:
    steps = config["total_step"]
    if not steps or steps <= 0:
        raise ModelError(
            f"ADALORA: total_step is {steps!r}; set it to the steps of the run, which the schedule "
            "of ranks needs"
        )
    if config["tinit"] >= steps - config["tfinal"]:
        raise ModelError(
            f"ADALORA: tinit {config['tinit']} and tfinal {config['tfinal']} leave none of "
            f"{steps} steps to cut ranks in; make them smaller"
        )
    if config["orth_reg_weight"] < 0:
        raise ModelError(
            f"ADALORA: orth_reg_weight is {config['orth_reg_weight']}; set it to 0 or more"
        )
    for name in ("use_dora", "loftq_config"):
        if config[name]:
            raise ModelError(f"ADALORA: {name} is set, which AdaLoRA does not take; leave it out")
    if find_parameters(blueprint, config["target_parameters"] or ()):
        raise ModelError(
            "ADALORA: target_parameters are set, which AdaLoRA can't adapt; leave them out"
        )
