"""Choice 1, the update space: what may change, exactly how much it is, and what it became."""

from __future__ import annotations

from tunemath.space.blueprint import Blueprint, Linear, read_blueprint
from tunemath.space.checkpoint import TensorHeader, read_tensor_headers
from tunemath.space.count import (
    LoraLedger,
    TargetRow,
    adapter_parameter_count,
    lora_ledger,
    lora_parameter_count,
    prefix_parameter_count,
    resolve_targets,
)
from tunemath.space.delta import lora_delta
from tunemath.space.record import UpdateSpace
from tunemath.space.spectrum import (
    LowRank,
    effective_rank,
    energy,
    factor_singular_values,
    low_rank,
    stable_rank,
)

__all__ = [
    "Blueprint",
    "Linear",
    "LoraLedger",
    "LowRank",
    "TargetRow",
    "TensorHeader",
    "UpdateSpace",
    "adapter_parameter_count",
    "effective_rank",
    "energy",
    "factor_singular_values",
    "lora_delta",
    "lora_ledger",
    "lora_parameter_count",
    "low_rank",
    "prefix_parameter_count",
    "read_blueprint",
    "read_tensor_headers",
    "resolve_targets",
    "stable_rank",
]
