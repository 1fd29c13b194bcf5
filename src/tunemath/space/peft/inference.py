"""``inference_mode``: what PEFT leaves frozen of an adapter that is set up for use alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tunemath.space.peft.change import Change, Group, Shared, frozen
from tunemath.space.peft.config import AdapterConfig

__all__ = ["as_for_inference"]

# The types whose own parameters PEFT leaves trainable all the same, and of SHADOW its network.
_TRAINED = ("ADAPTION_PROMPT", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING",
            "PROMPT_TUNING", "XLORA")  # fmt: skip
_NETWORK = "shadow_"
# What all types share is frozen: copies of saved modules, rows of tokens.
_SHARED = ("modules_to_save.", "token_adapter.")


def as_for_inference(config: AdapterConfig, change: Change) -> Change:
    """Return the change with what ``inference_mode`` freezes, and a note on how much that is.

    PEFT saves every adapter with it on. Biases of the model that ``bias`` trains stay trained.
    """
    if not config.get("inference_mode"):
        return change
    groups = tuple(each if _is_trained(config, each) else frozen(each) for each in change.groups)
    shared = tuple(each if _is_trained(config, each) else frozen(each) for each in change.shared)
    number = _trained(change.groups, change.shared) - _trained(groups, shared)
    note = (
        f"inference_mode is on, as in every adapter that PEFT saved, and freezes {number:,} "
        "parameters of the adapter; set it to false to count them as trained"
        if number
        else f"inference_mode is on, and PEFT leaves {config.peft_type} trainable all the same"
    )
    return replace(change, groups=groups, shared=shared, notes=(*change.notes, note))


def _is_trained(config: AdapterConfig, each: Group | Shared) -> bool:
    if any(part.name.startswith(_SHARED) for part in each.parts):
        return False
    network = isinstance(each, Shared) and each.name.startswith(_NETWORK)
    return config.peft_type in _TRAINED or network


def _trained(groups: Iterable[Group], shared: Iterable[Shared]) -> int:
    return sum(len(g.modules) * g.trainable for g in groups) + sum(s.trainable for s in shared)
