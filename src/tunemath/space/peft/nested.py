"""The settings within settings of LoRA, such as those of its variants, as PEFT takes them.

PEFT leaves out the keys that it does not know, but of ``monteclora_config``, which takes no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any, NamedTuple

from tunemath.errors import ModelError

__all__ = ["NESTED", "refuse_nested", "unknown_nested"]


class _Setting(NamedTuple):
    """A setting by its default, which tells its kind, and its bounds; () is a list of names."""

    default: Any
    least: float = -inf
    most: float = inf
    above: bool = False
    """Whether it must be more than ``least``, not as much."""
    words: tuple[str, ...] = ()


NESTED: dict[str, dict[str, _Setting]] = {
    "arrow_config": {
        "top_k": _Setting(3, least=1),
        "router_temperature": _Setting(1.0, least=0, above=True),
        "use_gks": _Setting(False),
        "task_adapter_names": _Setting(None),
        "gks_adapter_names": _Setting(None),
        "rng_seed": _Setting(None),
    },
    "corda_config": {
        "cache_file": _Setting(None),
        "covariance_file": _Setting(None),
        "corda_method": _Setting("ipm"),
        "verbose": _Setting(False),
        "use_float16_for_covariance": _Setting(False),
        "prune_temporary_fields": _Setting(True),
    },
    "eva_config": {
        "rho": _Setting(2.0, least=1),
        "tau": _Setting(0.99, least=0, most=1),
        "use_label_mask": _Setting(True),
        "label_mask_value": _Setting(-100),
        "whiten": _Setting(False),
        "adjust_scaling_factors": _Setting(True),
    },
    "kasa_config": {"beta": _Setting(1e-4, least=0), "gamma": _Setting(1e-3, least=0)},
    "loftq_config": {"loftq_bits": _Setting(4), "loftq_iter": _Setting(1)},
    "lora_ga_config": {
        "direction": _Setting("ArB2r"),
        "scale": _Setting("stable"),
        "stable_gamma": _Setting(16),
    },
    "monteclora_config": {
        "num_samples": _Setting(8, least=1),
        "use_entropy": _Setting(False),
        "dirichlet_prior": _Setting(0.1, least=0, above=True),
        "sample_scaler": _Setting(1e-4),
        "kl_loss_weight": _Setting(1e-5),
        "buffer_size": _Setting(150, least=1),
    },
    "use_bdlora": {
        "target_modules_bd_a": _Setting(()),
        "target_modules_bd_b": _Setting(()),
        "nblocks": _Setting(1, least=1),
        "match_strict": _Setting(True),
    },
    "velora_config": {
        "num_groups": _Setting(64, least=1),
        "scale": _Setting(1.0, least=0, above=True),
        "init_type": _Setting(
            "batch_average", words=("batch_average", "batch_average_once", "random")
        ),
    },
}


def unknown_nested(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys that PEFT does not know: ``use_bdlora.nblock``."""
    for field in NESTED.keys() & values.keys():
        if isinstance(values[field], Mapping):
            yield from (f"{field}.{key}" for key in values[field].keys() - NESTED[field].keys())


def refuse_nested(kind: str, config: Mapping[str, Any]) -> None:
    """Raise for settings that PEFT's classes don't take, or that fail where they are used."""
    for field, known in NESTED.items():
        given = config[field]
        if given is None:
            continue
        if not isinstance(given, Mapping):
            raise ModelError(f"{kind}: {field} is {given!r:.60}; set it to a mapping of settings")
        for key, value in given.items():
            if key not in known and field == "monteclora_config":
                raise ModelError(
                    f"{kind}: {field} has {key}, which PEFT refuses; known: {', '.join(known)}"
                )
            expected = _expected(known[key], value) if key in known else ""
            if expected:
                raise ModelError(f"{kind}: {field} has {key} {value!r:.60}; set it to {expected}")
    sides = config["use_bdlora"] or {}
    both = {*(sides.get("target_modules_bd_a") or ())} & {*(sides.get("target_modules_bd_b") or ())}
    if both:
        raise ModelError(
            f"{kind}: use_bdlora has {', '.join(sorted(both))} in both target_modules_bd_a and "
            "target_modules_bd_b; name each in one of them"
        )


def _expected(setting: _Setting, value: Any) -> str:
    """Return what a setting must be; nothing where it is so."""
    default, least, most, above, words = setting
    if default == ():
        names = value is None or (
            isinstance(value, list | tuple | set) and all(isinstance(each, str) for each in value)
        )
        return "" if names else "a list of names"
    if words:
        return "" if value in words else f"one of {', '.join(words)}"
    if isinstance(default, bool) or not isinstance(default, int | float):
        return ""
    kind = int if isinstance(default, int) else (int, float)
    good = isinstance(value, kind) and not isinstance(value, bool)
    if good and (least < value if above else least <= value) and value <= most:
        return ""
    number = "a whole number" if isinstance(default, int) else "a number"
    if most < inf:
        return f"{number} from {least:g} to {most:g}"
    bound = f" above {least:g}" if above else f" of {least:g} or more" if least > -inf else ""
    return number + bound
