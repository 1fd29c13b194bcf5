"""PEFT's methods as closed forms: what each adds to a model, without PEFT and without torch."""

from __future__ import annotations

from tunemath.space.peft.change import Change, Group, Part, Shared, grouped, held
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.count import peft_change, peft_ledger, unmatched_targets

__all__ = [
    "AdapterConfig",
    "Change",
    "Group",
    "Part",
    "Shared",
    "grouped",
    "held",
    "peft_change",
    "peft_ledger",
    "unmatched_targets",
]
