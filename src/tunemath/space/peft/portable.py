"""What an adapter says of itself to whoever is given it: its base and its targets.

PEFT writes the path at which the base lay while training, and ``all-linear`` as one full name a
layer. Another machine has no such path, and servers know targets by their last part: ``q_proj``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.match import find_targets
from tunemath.space.peft.names import layer_of, telling_ends

__all__ = ["base_reference", "portable", "references", "shortest_targets"]

_SNAPSHOT = re.compile(r"models--([^/\\]+)--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})")
# More names to leave out are no shorter to read than the names that are meant.
_FEW = 8


def base_reference(name: str) -> tuple[str, str | None]:
    """Return what a base is called on any machine, and its commit where the name holds one.

    A hub id stays as it is, and a folder of the hub's cache becomes one. Another folder is
    ``./NAME``, which nothing takes for an id of the hub.

    >>> base_reference("org/name"), base_reference("/home/user/models/llama")
    (('org/name', None), ('./llama', None))
    """
    return references([name])[name]


def references(names: Iterable[str]) -> dict[str, tuple[str, str | None]]:
    """Return the `base_reference` of each name; a folder called as one before it says more.

    >>> [name for name, _ in references(["/one/model", "/two/model"]).values()]
    ['./model', './two/model']
    """
    found: dict[str, tuple[str, str | None]] = {}
    for name in dict.fromkeys(names):
        snapshot = _SNAPSHOT.search(name)
        if snapshot:
            found[name] = f"{snapshot[1]}/{snapshot[2]}", snapshot[3]
        elif _is_folder(name):
            parts, taken = _parts(name), {reference for reference, _ in found.values()}
            tails = ["./" + "/".join(parts[-count:]) for count in range(1, len(parts) + 1)]
            found[name] = next((tail for tail in tails if tail not in taken), tails[-1]), None
        else:
            found[name] = name, None
    return found


def _is_folder(name: str) -> bool:
    if name.startswith(("/", "~", ".", "\\")) or PureWindowsPath(name).is_absolute():
        return True
    return os.path.isdir(name)  # also of a folder that may not be looked into


def _parts(name: str) -> tuple[str, ...]:
    """Return a folder's name and those above it, roots left out."""
    whole = str(Path(name).resolve()) if os.path.isdir(name) else name
    parts = tuple(part for part in re.split(r"[/\\]", whole) if part not in ("", ".", "..", "~"))
    return parts or ("model",)


def portable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return an adapter's configuration without paths of this machine, its lists in one order."""
    values = dict(values)
    base = values.get("base_model_name_or_path")
    if isinstance(base, str) and base:
        name, commit = base_reference(base)
        values["base_model_name_or_path"] = name
        values["revision"] = commit or values.get("revision")
    if isinstance(values.get("target_modules"), list):
        values["target_modules"] = sorted(values["target_modules"])
    return values


def shortest_targets(
    blueprint: Blueprint, config: AdapterConfig, modules: Iterable[str] | None = None
) -> dict[str, Any]:
    """Return the fields that mean the modules of ``config`` in the shortest form that PEFT has.

    Tried are the last parts of their names, the shortest endings that tell them apart, each also
    with the numbers of their layers, or with the few names to leave out. A form counts only where
    it means the same modules of this model; where none does, or the targets are an expression,
    nothing is returned. ``modules`` are those that were adapted in fact, if known: a configuration
    that does not mean them is left as it is.
    """
    if not isinstance(config.get("target_modules"), list | tuple | set | frozenset):
        return {}
    meant = find_targets(blueprint, config)
    chosen = {module.name for module in meant.modules}
    if not chosen or meant.containers or (modules is not None and chosen != set(modules)):
        return {}
    forms = [form for form in _forms(blueprint, config, sorted(chosen)) if _shorter(form, config)]
    for form in sorted(forms, key=_length):
        found = find_targets(blueprint, config.having(**form))
        if {m.name for m in found.modules} == chosen and not found.containers:
            return form
    return {}


def _forms(
    blueprint: Blueprint, config: AdapterConfig, chosen: Sequence[str]
) -> Iterator[dict[str, Any]]:
    last = sorted({name.rpartition(".")[2] for name in chosen})
    ends = sorted(telling_ends(blueprint, chosen))
    yield {"target_modules": last}
    yield {"target_modules": ends}
    if config.get("exclude_modules") is None:
        found = find_targets(blueprint, config.having(target_modules=last))
        wrong = sorted({*(m.name for m in found.modules), *found.containers} - {*chosen})
        if wrong and len(wrong) <= _FEW:
            yield {"target_modules": last, "exclude_modules": wrong}
    if config.get("layers_to_transform") is None:
        number = layer_of(config)
        numbers = {number(name) for name in chosen}
        if None not in numbers:
            layers = sorted(each for each in numbers if each is not None)
            yield {"target_modules": last, "layers_to_transform": layers}


def _shorter(form: Mapping[str, Any], config: AdapterConfig) -> bool:
    return _length(form) < _length({"target_modules": sorted(config["target_modules"])})


def _length(form: Mapping[str, Any]) -> int:
    return len(json.dumps(form))
