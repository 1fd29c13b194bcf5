"""PEFT's adapter_config.json, read as it is: defaults filled in, unknown keys named."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from tunemath.errors import ModelError
from tunemath.shown import shown
from tunemath.space.checkpoint import read_json
from tunemath.space.peft.nested import unknown_nested

__all__ = [
    "AdapterConfig",
    "default_targets",
    "peft_facts",
    "refuse_lost_layers",
    "refuse_wrong_types",
]

# What the fields that many types share may be, beside null, in code and in words.
_SHARED: dict[str, tuple[tuple[type, ...], str]] = {
    "target_modules": ((str, list), "a list of names, a regular expression, or all-linear"),
    "exclude_modules": ((str, list), "a list of names or a regular expression"),
    "feedforward_modules": ((str, list), "a list of names or a regular expression"),
    "modules_to_save": ((list,), "a list of names"),
    "target_parameters": ((list,), "a list of names, no expression"),
    "layers_to_transform": ((int, list), "a layer's number or a list of them"),
    "layers_pattern": ((str, list), "a name or a list of names"),
    "rank_pattern": ((dict,), "a mapping from names to ranks"),
    "alpha_pattern": ((dict,), "a mapping from names to numbers"),
    "trainable_token_indices": ((int, list, dict), "a list of indices or a mapping from names"),
    "layer_replication": ((list,), "a list of pairs of layers"),
    "loftq_config": ((dict, type(None)), "a mapping of its settings"),
    "token_indices": ((list,), "a list of tokens' numbers"),
    "cpt_token_ids": ((list,), "a list of tokens' numbers"),
    "cpt_mask": ((list,), "a list of numbers"),
    "cpt_tokens_type_mask": ((list,), "a list of numbers"),
    **dict.fromkeys(
        (
            "num_virtual_tokens",
            "num_transformer_submodules",
            "num_attention_heads",
            "num_layers",
            "token_dim",
            "encoder_hidden_size",
            "update_hidden_size",
        ),
        ((int,), "a whole number"),
    ),
    "total_step": ((int, float), "a number of steps"),
    "bias": ((str,), "a word, such as none or all"),
    "task_type": ((str,), "one of PEFT's task types, such as CAUSAL_LM"),
}


# What the lists among them hold.
_OF_NAMES = ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save",
             "target_parameters", "layers_pattern")  # fmt: skip
_OF_NUMBERS = ("layers_to_transform", "token_indices", "cpt_token_ids", "cpt_mask",
               "cpt_tokens_type_mask")  # fmt: skip
_ELEMENTS = {**dict.fromkeys(_OF_NAMES, str), **dict.fromkeys(_OF_NUMBERS, int)}


class AdapterConfig(Mapping[str, Any]):
    """A PEFT configuration of any tuner type: a mapping of all its fields.

    ``AdapterConfig("LORA", r=16)`` fills in PEFT's defaults; `read` takes adapter_config.json.
    ``unknown`` names the keys that this version of PEFT does not have and would ignore; one within
    another as ``use_bdlora.nblock``.
    """

    def __init__(self, peft_type: str, /, **values: Any) -> None:
        types = peft_facts()["types"]
        self.peft_type = str(peft_type).upper()
        if self.peft_type not in types:
            near = difflib.get_close_matches(self.peft_type, types, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(types)}"
            raise ModelError(f"peft_type {peft_type!r} is none of PEFT's; {hint}")
        fields = types[self.peft_type]["defaults"]
        nested = unknown_nested({key: values[key] for key in values.keys() & fields.keys()})
        self.unknown = tuple(sorted((values.keys() - fields.keys() - {"peft_type"}) | {*nested}))
        self._values = {**fields, **{key: values[key] for key in values if key in fields}}
        self._values["peft_type"] = self.peft_type

    @classmethod
    def read(cls, path: str | Path) -> AdapterConfig:
        """Read adapter_config.json, or the folder that holds it.

        Raises `ModelError` where a field is unlike what it is for.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "adapter_config.json"
        if not path.exists():
            raise ModelError(f"{path} does not exist; give PEFT's adapter_config.json")
        values = read_json(path)
        kind = values.pop("peft_type", None)
        if not isinstance(kind, str):
            raise ModelError(f"{path} has no peft_type ({kind!r}); expected one such as LORA")
        values.pop("runtime_config", None)  # not saved nor restored by PEFT
        for key, value in values.items():
            if not _is_finite(value):
                raise ModelError(f"{path}: {shown(key)} is {value!r:.60}; expected finite numbers")
        config = cls(kind, **values)
        refuse_wrong_types(config)
        return config

    def having(self, **values: Any) -> AdapterConfig:
        """Return a copy with some fields set."""
        return AdapterConfig(self.peft_type, **{**self._values, **values})

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"AdapterConfig({self.peft_type!r}, {self._values})"


def _is_finite(value: Any) -> bool:
    """Say whether JSON can hold every number in a value."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def default_targets(peft_type: str, model_type: str, which: str = "target_modules") -> Any:
    """Return the targets that PEFT has for a model type when none are given, or None."""
    return peft_facts()["types"][peft_type].get(which, {}).get(model_type)


def refuse_wrong_types(config: AdapterConfig) -> None:
    """Raise where a value can't be what its field is for: a number for names, null for a rank."""
    defaults = peft_facts()["types"][config.peft_type]["defaults"]
    for key, value in config.items():
        default = defaults.get(key)
        if isinstance(default, bool | str) and isinstance(value, list | dict):
            raise ModelError(f"{config.peft_type}: {key} is {value!r:.60}; expected a single value")
        wanted, words = _wanted(key, default)
        if not wanted or (value is None and default is None):
            continue
        lists = (tuple, set, frozenset) if list in wanted else ()
        good = isinstance(value, (*wanted, *lists)) and not isinstance(value, bool)
        if good and key in _ELEMENTS and isinstance(value, list | tuple | set | frozenset):
            good = all(type(each) is _ELEMENTS[key] for each in value)
        if good and key == "alpha_pattern" and isinstance(value, dict):
            good = all(type(each) in (int, float) for each in value.values())
        if not good:
            raise ModelError(f"{config.peft_type}: {key} is {value!r:.60}; expected {words}")


def _wanted(key: str, default: object) -> tuple[tuple[type, ...], str]:
    """Return the types that a field may have and their name; none where nothing tells them."""
    if key in _SHARED:
        return _SHARED[key]
    if isinstance(default, int | float) and not isinstance(default, bool):
        return (int, float), "a number"
    return ((dict,), "a mapping") if isinstance(default, dict) else ((), "")


def refuse_lost_layers(config: AdapterConfig) -> None:
    """Raise where layers are asked for in a way that the tuner type takes no notice of."""
    refused = peft_facts()["types"][config.peft_type]["refuses"]
    layers, pattern = config.get("layers_to_transform"), config.get("layers_pattern")
    expression = isinstance(config.get("target_modules"), str)
    case = "layers" if layers is not None else "a pattern" if pattern else "an empty pattern"
    if expression and not (layers is pattern is None) and f"{case} with an expression" in refused:
        raise ModelError(
            f"{config.peft_type}: target_modules is {config['target_modules']!r}, beside which "
            "PEFT takes neither layers_to_transform nor layers_pattern; say the layers in a "
            "regular expression, or give a list of names"
        )
    if pattern and layers is None and "a pattern without layers" in refused:
        raise ModelError(
            f"{config.peft_type}: layers_pattern is {pattern!r} without layers_to_transform; give "
            "the layers too, or leave it out"
        )


@cache
def peft_facts() -> dict[str, Any]:
    """Return what was read from PEFT itself: version, and of each type its fields and defaults."""
    text = resources.files("tunemath.space.peft").joinpath("facts.json").read_text("utf-8")
    facts: dict[str, Any] = json.loads(text)
    return facts
