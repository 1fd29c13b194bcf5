"""From a configuration to what it does to a model: the tuner's own part, and what all share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import Any

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint
from tunemath.space.blueprint.config import TASKS
from tunemath.space.ledger import Ledger
from tunemath.space.peft import match
from tunemath.space.peft.change import Change, Group, held
from tunemath.space.peft.config import AdapterConfig, refuse_lost_layers, refuse_wrong_types
from tunemath.space.peft.inference import inference_notes
from tunemath.space.peft.lost import lost_settings
from tunemath.space.peft.mixtures import fused_parameter, of_fused_experts
from tunemath.space.peft.parameters import find_parameters, has_parameter
from tunemath.space.peft.replication import change_of_replicated
from tunemath.space.peft.saved import (
    saved_modules,
    saved_unmatched,
    with_guarded_heads,
    with_saved_modules,
)
from tunemath.space.peft.tying import token_rows, with_tied_saved

__all__ = ["peft_change", "peft_ledger", "tuner_of", "unmatched_targets"]

# Where each tuner type's closed form is; imported when it is asked for.
_TUNERS = {
    "ADALORA": "adalora:adalora",
    "ADAMSS": "adamss:adamss",
    "ADAPTION_PROMPT": "adaption_prompt:adaption_prompt",
    "BEFT": "beft:beft",
    "BOFT": "orthogonal:boft",
    "C3A": "spectral:c3a",
    "CARTRIDGE": "prefix:cartridge",
    "CPT": "prompt:cpt",
    "DEFT": "deft:deft",
    "DELORA": "delora:delora",
    "FOURIERFT": "spectral:fourierft",
    "FROD": "frod:frod",
    "GLORA": "glora:glora",
    "GRALORA": "gralora:gralora",
    "HIRA": "hira:hira",
    "HRA": "orthogonal:hra",
    "IA3": "ia3:ia3",
    "LILY": "lily:lily",
    "LN_TUNING": "ln_tuning:ln_tuning",
    "LOHA": "lycoris:loha",
    "LOKR": "lycoris:lokr",
    "LORA": "lora:lora",
    "MISS": "miss:miss",
    "MULTITASK_PROMPT_TUNING": "prompt:multitask_prompt_tuning",
    "OFT": "orthogonal:oft",
    "OSF": "osf:osf",
    "PEANUT": "peanut:peanut",
    "POLY": "poly:poly",
    "PREFIX_TUNING": "prefix:prefix_tuning",
    "PROMPT_TUNING": "prompt:prompt_tuning",
    "PSOFT": "psoft:psoft",
    "PVERA": "vera:pvera",
    "P_TUNING": "prompt:p_tuning",
    "RANDLORA": "randlora:randlora",
    "ROAD": "road:road",
    "SHADOW": "shadow:shadow",
    "SHIRA": "shira:shira",
    "SUPERTUNING": "supertuning:supertuning",
    "TINYLORA": "tinylora:tinylora",
    "TRAINABLE_TOKENS": "trainable_tokens:trainable_tokens",
    "UNILORA": "unilora:unilora",
    "VBLORA": "vblora:vblora",
    "VERA": "vera:vera",
    "WAVEFT": "spectral:waveft",
    "XLORA": "xlora:xlora",
}

# Quantised weights that are no parameters in the live model.
_BUFFERED = ("awq", "gptq")


def peft_ledger(blueprint: Blueprint, config: AdapterConfig) -> Ledger:
    """Return the exact counts of PEFT's ``get_peft_model`` on a model."""
    return Ledger(blueprint, peft_change(blueprint, config))


def peft_change(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return what PEFT's ``get_peft_model`` would do to a model.

    Each tuner gives the tensors that it adds and a closed form for the trainable ones; they are
    held against each other. What all tuners share is added: biases, ``modules_to_save`` with those
    that the task adds, trainable tokens. Raises `ModelError` where PEFT refuses.
    """
    refuse_wrong_types(config)
    _refuse_unknown_task(config)
    refuse_lost_layers(config)
    spans = config.get("layer_replication")
    if spans:
        once = config.having(layer_replication=None)
        return change_of_replicated(blueprint, spans, lambda wide: peft_change(wide, once))
    used = of_fused_experts(blueprint, with_guarded_heads(config))
    used = with_tied_saved(blueprint, used)
    own = tuner_of(config.peft_type)(blueprint, used)
    own = replace(own, unfrozen=own.unfrozen | _biases(blueprint, used, own))
    change = with_saved_modules(blueprint, used, own)
    rows: tuple[Group, ...] = ()
    if used.get("trainable_token_indices") is not None:
        rows = token_rows(blueprint, used, own, saved_modules(blueprint, used))
    change = replace(change, groups=(*change.groups, *rows))
    change = replace(
        change,
        notes=(*change.notes, *_notes(blueprint), *inference_notes(config, change)),
        findings=tuple(lost_settings(blueprint, config, lambda: _adapted(blueprint, used, own))),
        unmatched=tuple(_unmatched(blueprint, config)),
    )
    return held(change)


def _refuse_unknown_task(config: AdapterConfig) -> None:
    if config["task_type"] is not None and config["task_type"] not in TASKS:
        raise ModelError(
            f"{config.peft_type}: task_type is {config['task_type']!r}; set it to one of "
            f"{', '.join(TASKS)}, or leave it out"
        )


def tuner_of(peft_type: str) -> Any:
    """Return the function from (blueprint, configuration) to a tuner's own change."""
    if peft_type not in _TUNERS:
        raise ModelError(f"{peft_type} is not counted yet; known: {', '.join(_TUNERS)}")
    module, _, name = _TUNERS[peft_type].partition(":")
    return getattr(import_module(f"tunemath.space.peft.tuners.{module}"), name)


def _biases(blueprint: Blueprint, config: AdapterConfig, change: Change) -> frozenset[str]:
    """Return the biases that ``bias`` trains: all of the model's, or those of the targets."""
    which = config.get("bias") or "none"
    if which == "none":
        return frozenset()
    if which == "all":
        modules = blueprint.modules
    elif which.endswith("_only"):
        modules = change.targets
    else:
        raise ModelError(
            f"bias is {which!r}; PEFT knows none, all and {config.peft_type.lower()}_only"
        )
    return frozenset(f"{m.name}.bias" if m.name else "bias" for m in modules if m.bias)


def _adapted(blueprint: Blueprint, config: AdapterConfig, change: Change) -> list[str]:
    """Return the full names of the modules and single parameters that a tuner adapts."""
    alone = find_parameters(blueprint, config.get("target_parameters") or ())
    return [module.name for module in change.targets] + [each.full_name for each in alone]


def unmatched_targets(blueprint: Blueprint, config: AdapterConfig) -> Iterator[str]:
    """Yield the target names that match nothing, nor an expert's layer that a model holds fused."""
    for name in match.unmatched_targets(blueprint, config):
        parameter = fused_parameter(blueprint, config, name)
        if parameter is None or not has_parameter(blueprint, parameter):
            yield name


def _unmatched(blueprint: Blueprint, config: AdapterConfig) -> Iterator[str]:
    """Yield the names asked for that match nothing: targets, parameters, modules to save."""
    yield from unmatched_targets(blueprint, config)
    for name in config.get("target_parameters") or ():
        if not has_parameter(blueprint, name):
            yield name
    yield from saved_unmatched(blueprint, config)


def _notes(blueprint: Blueprint) -> Iterator[str]:
    if blueprint.quantisation in _BUFFERED:
        yield (
            f"PEFT's own total leaves out weights quantised as {blueprint.quantisation}, which it "
            "holds as buffers; here they count by their logical shapes"
        )
