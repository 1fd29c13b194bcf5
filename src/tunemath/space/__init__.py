"""Choice 1, the update space: what may change, exactly how much it is, and what it became.

The names below are loaded when first used: counting needs neither pydantic nor NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunemath.lazy import lazy_names

if TYPE_CHECKING:
    from tunemath.space.angles import principal_angles, subspace_overlap
    from tunemath.space.blueprint import Blueprint, Module, positions_of, read_blueprint
    from tunemath.space.checkpoint import TensorHeader, read_tensor_headers
    from tunemath.space.count import (
        adapter_parameter_count,
        lora_parameter_count,
        prefix_parameter_count,
    )
    from tunemath.space.coverage import Coverage, coverage_of
    from tunemath.space.delta import lora_delta
    from tunemath.space.factors import Factors, lora_factors
    from tunemath.space.intruders import Intruders, intruder_dimensions
    from tunemath.space.ledger import Ledger
    from tunemath.space.lowrank import LowRank, low_rank
    from tunemath.space.methods import blocks_of, change_of, ledger_of, peft_settings
    from tunemath.space.peft import Change
    from tunemath.space.peft.match import near_names
    from tunemath.space.record import (
        UNFREEZING,
        AdapterSpace,
        LastLayersSpace,
        LoraSpace,
        PrefixSpace,
        PromptSpace,
        UnfreezeSpace,
        UpdateSpace,
        parse_space,
        read_space,
        virtual_tokens,
    )
    from tunemath.space.spectrum import (
        effective_rank,
        effective_rank_bounds,
        energy,
        factor_singular_values,
        stable_rank,
    )

__all__ = [
    "UNFREEZING",
    "AdapterSpace",
    "Blueprint",
    "Change",
    "Coverage",
    "Factors",
    "Intruders",
    "LastLayersSpace",
    "Ledger",
    "LoraSpace",
    "LowRank",
    "Module",
    "PrefixSpace",
    "PromptSpace",
    "TensorHeader",
    "UnfreezeSpace",
    "UpdateSpace",
    "adapter_parameter_count",
    "blocks_of",
    "change_of",
    "coverage_of",
    "effective_rank",
    "effective_rank_bounds",
    "energy",
    "factor_singular_values",
    "intruder_dimensions",
    "ledger_of",
    "lora_delta",
    "lora_factors",
    "lora_parameter_count",
    "low_rank",
    "near_names",
    "parse_space",
    "peft_settings",
    "positions_of",
    "prefix_parameter_count",
    "principal_angles",
    "read_blueprint",
    "read_space",
    "read_tensor_headers",
    "stable_rank",
    "subspace_overlap",
    "virtual_tokens",
]

_HOMES = {
    "UNFREEZING": "record",
    "AdapterSpace": "record",
    "Blueprint": "blueprint",
    "Change": "peft",
    "Coverage": "coverage",
    "Factors": "factors",
    "Intruders": "intruders",
    "LastLayersSpace": "record",
    "Ledger": "ledger",
    "LoraSpace": "record",
    "LowRank": "lowrank",
    "Module": "blueprint",
    "PrefixSpace": "record",
    "PromptSpace": "record",
    "TensorHeader": "checkpoint",
    "UnfreezeSpace": "record",
    "UpdateSpace": "record",
    "adapter_parameter_count": "count",
    "blocks_of": "methods",
    "change_of": "methods",
    "coverage_of": "coverage",
    "effective_rank": "spectrum",
    "effective_rank_bounds": "spectrum",
    "energy": "spectrum",
    "factor_singular_values": "spectrum",
    "intruder_dimensions": "intruders",
    "ledger_of": "methods",
    "lora_delta": "delta",
    "lora_parameter_count": "count",
    "lora_factors": "factors",
    "low_rank": "lowrank",
    "near_names": "peft.match",
    "parse_space": "record",
    "peft_settings": "methods",
    "positions_of": "blueprint",
    "prefix_parameter_count": "count",
    "principal_angles": "angles",
    "read_blueprint": "blueprint",
    "read_space": "record",
    "read_tensor_headers": "checkpoint",
    "stable_rank": "spectrum",
    "subspace_overlap": "angles",
    "virtual_tokens": "record",
}


__getattr__, __dir__ = lazy_names(__name__, _HOMES)
