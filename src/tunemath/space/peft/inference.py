"""``inference_mode``: what PEFT leaves frozen of an adapter that is set up for use alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tunemath.space.peft.change import Change, Group, Shared, frozen
from tunemath.space.peft.config import AdapterConfig

__all__ = ["for_inference", "inference_notes"]

# The types whose own parameters PEFT leaves trainable all the same, and of SHADOW its network.
_TRAINED = ("ADAPTION_PROMPT", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING",
            "PROMPT_TUNING", "XLORA")  # fmt: skip
_NETWORK = "shadow_"
# What all types share is frozen: copies of saved modules, rows of tokens.
_SHARED = ("modules_to_save.", "token_adapter.")


def for_inference(config: AdapterConfig, change: Change) -> Change:
    """Return the change with what PEFT freezes when it sets an adapter up for inference.

    Biases of the model that ``bias`` trains stay trained.
    """
    groups = tuple(each if _is_trained(config, each) else frozen(each) for each in change.groups)
    shared = tuple(each if _is_trained(config, each) else frozen(each) for each in change.shared)
    return replace(change, groups=groups, shared=shared)


def inference_notes(config: AdapterConfig, change: Change) -> tuple[str, ...]:
    """Return a note where ``inference_mode`` is on: the count is of the adapter as it trains.

    PEFT saves every adapter with it on, whatever it was trained with.
    """
    if not config.get("inference_mode"):
        return ()
    still = for_inference(config, change)
    number = _trained(change.groups, change.shared) - _trained(still.groups, still.shared)
    return (
        "inference_mode is on, as in every adapter that PEFT saved; counted as the adapter trains. "
        f"Loaded as it is, PEFT freezes {number:,} of these parameters",
    )


def _is_trained(config: AdapterConfig, each: Group | Shared) -> bool:
    if any(part.name.startswith(_SHARED) for part in each.parts):
        return False
    network = isinstance(each, Shared) and each.name.startswith(_NETWORK)
    return config.peft_type in _TRAINED or network


def _trained(groups: Iterable[Group], shared: Iterable[Shared]) -> int:
    return sum(len(g.modules) * g.trainable for g in groups) + sum(s.trainable for s in shared)
