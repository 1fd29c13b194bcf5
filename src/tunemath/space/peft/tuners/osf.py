"""OSF: the weight's lesser singular directions trained, the greater ones kept."""

from __future__ import annotations

from math import isfinite
from typing import Any

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig, default_targets
from tunemath.space.peft.expressions import compiled
from tunemath.space.peft.match import find_targets
from tunemath.space.peft.tuners.settings import uncounted
from tunemath.space.peft.tuners.targets import patterns_of, require_some

__all__ = ["osf"]


def osf(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return OSF's lesser singular triples, U (d_out, l), S (l,), V (l, d_in).

    ``l (d_in + d_out + 1)`` a layer, where l is what ``effective_rank`` leaves of the lesser
    width: half of it unless said otherwise. PEFT passes over whatever is not a Linear layer, and
    takes all of them where it has no default targets.

    Source: Nayak et al. 2025, arXiv 2504.07097.
    """
    if config["target_modules"] is None and not default_targets("OSF", blueprint.model_type):
        config = config.having(target_modules="all-linear")
    targets = require_some(find_targets(blueprint, config), config)
    linears = [m for m in targets.modules if m.kind == "linear"]
    kept = {m.name: _kept(config, m) for m in linears}
    groups, held = [], 0
    for modules in grouped(linears, lambda m: (m[1:], kept[m.name])).values():
        d_in, d_out, high = modules[0].d_in, modules[0].d_out, kept[modules[0].name]
        low = min(d_in, d_out) - high
        parts = (
            Part("osf_svd_params.U_low", (d_out, low)),
            Part("osf_svd_params.S_low", (low,)),
            Part("osf_svd_params.V_low", (low, d_in)),
        )
        groups.append(Group(modules, parts, low * (d_in + d_out + 1)))
        # The start of what is trained and, but for square weights, the longer kept factor.
        longer = 0 if d_in == d_out else high * max(d_in, d_out)
        held += len(modules) * (low * (d_in + d_out + 1) + longer)
    notes = [uncounted("the singular directions that hold the updates apart", held)]
    passed = [m.name for m in targets.modules if m.kind != "linear"] + [*targets.containers]
    if passed:
        notes.append(
            f"OSF takes Linear layers alone, and PEFT passes silently over {len(passed)} other "
            f"targets, such as {passed[0]}"
        )
    return Change(tuple(groups), notes=tuple(notes))


def _kept(config: AdapterConfig, module: Module) -> int:
    """Return the number of singular directions that are kept: at least 1, at most all."""
    asked, width = _asked(config, module.name), min(module.d_in, module.d_out)
    if asked is None:
        rank = width // 2
    elif isinstance(asked, float) and 0 < asked <= 1:
        rank = int(width * asked)
    else:
        rank = min(int(asked), width)
    if rank < 1:
        raise ModelError(
            f"OSF keeps effective_rank {asked!r} of the {width} singular directions of "
            f"{module.name}, that is {rank}; set it so that at least 1 is kept"
        )
    return rank


def _asked(config: AdapterConfig, name: str) -> Any:
    """Return ``effective_rank``, or what the first pattern that is found in the name has."""
    value = config["effective_rank"]
    patterns = patterns_of(config, "rank_pattern") if config["rank_pattern"] else {}
    value = next((rank for p, rank in patterns.items() if compiled(p, p).search(name)), value)
    if value is not None and not (isinstance(value, int | float) and isfinite(value)):
        raise ModelError(
            f"OSF has effective_rank {value!r} for {name}; set it to a whole number, or to a "
            "fraction of the lesser width"
        )
    return value
