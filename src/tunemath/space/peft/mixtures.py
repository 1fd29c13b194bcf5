"""How PEFT reads targets of mixtures whose experts transformers 5 holds as single tensors.

Targets that name the former linear layers (w1, gate_proj) become ``target_parameters``; where two
of them became one tensor, that tensor's rank is theirs together. Only LoRA's targets are read so.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.config import AdapterConfig, peft_facts
from tunemath.space.peft.match import find_targets
from tunemath.space.peft.names import name_filter

__all__ = ["fused_parameter", "of_fused_experts"]


@dataclass(frozen=True)
class _Family:
    """What became of a mixture's linear layers, by their former names."""

    renamed: Mapping[str, str]
    fused: Mapping[str, Sequence[str]]


def of_fused_experts(blueprint: Blueprint, config: AdapterConfig) -> AdapterConfig:
    """Return the configuration as PEFT reads it for this model type; most are left as they are.

    Raises `ModelError` where only some of the layers that share a tensor are targets.
    """
    family = _family(blueprint, config)
    if family is None:
        return config
    asked = config["target_modules"]
    if isinstance(asked, str):
        asked = tuple(_resolved(blueprint, config, family))
        if not asked:
            return config
    names = list(dict.fromkeys(asked or ()))
    former = {name: old for name in names if (old := _former(name, family)) is not None}
    parameters = dict.fromkeys(config["target_parameters"] or ())
    parameters |= dict.fromkeys(family.renamed[old] for old in former.values())
    return config.having(
        target_modules=[name for name in names if name not in former],
        target_parameters=list(parameters),
        rank_pattern=_ranks(config, family, set(former.values())),
    )


def fused_parameter(blueprint: Blueprint, config: AdapterConfig, target: str) -> str | None:
    """Return the parameter that stands for a target of this model type; None for most."""
    family = _family(blueprint, config)
    former = _former(target, family) if family else None
    return family.renamed[former] if family and former else None


def _family(blueprint: Blueprint, config: AdapterConfig) -> _Family | None:
    facts = peft_facts()["mixtures"]
    kind = facts["built_like"].get(blueprint.model_type)
    if config.peft_type != "LORA" or kind is None:
        return None
    return _Family(facts["renamed"][kind], facts["fused"][kind])


def _former(name: str, family: _Family) -> str | None:
    """Return the former layer that a target names."""
    return next((old for old in family.renamed if f".{name}".endswith(f".{old}")), None)


def _ranks(config: AdapterConfig, family: _Family, present: Collection[str]) -> dict[str, int]:
    """Return the rank pattern with the ranks of tensors that several targets share."""
    ranks = dict(config["rank_pattern"] or {})
    for tensor, needed in family.fused.items():
        missing = [name for name in needed if name not in present]
        if missing and len(missing) < len(needed):
            given = [name for name in needed if name in present]
            raise ModelError(
                f"LORA: target_modules has {', '.join(given)} without {', '.join(missing)}; this "
                f"model holds them as one tensor, {tensor}: name all of them or none"
            )
        if not missing:
            ranks[rf".*\.{re.escape(tensor)}"] = config["r"] * len(needed)
    return ranks


def _resolved(blueprint: Blueprint, config: AdapterConfig, family: _Family) -> Iterator[str]:
    """Yield the last parts of the names that ``all-linear`` or a regular expression means."""
    if config["target_modules"].lower() == "all-linear":
        # The former layers were linear too.
        yield from dict.fromkeys(m.short_name for m in find_targets(blueprint, config).modules)
        yield from family.renamed
        return
    meant = name_filter(config)
    tensors = [name for name, _ in blueprint.tensors() if name not in blueprint.tied]
    every = (*blueprint.containers, *blueprint.by_name, *tensors)
    matched = dict.fromkeys(name.rpartition(".")[2] for name in every if meant(name))
    yield from matched
    for old, new in family.renamed.items():
        places = (name.rpartition(".") for name in tensors)
        former = (f"{place}.{old}" for place, _, tensor in places if tensor == new)
        if old not in matched and any(map(meant, former)):
            yield old
