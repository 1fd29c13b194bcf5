"""A blueprint as JSON, and back."""

from __future__ import annotations

import json
from typing import Any

from tunemath.errors import ModelError
from tunemath.space.blueprint.record import Blueprint, Module

__all__ = ["from_json", "to_json"]

_FIELDS = ("model_type", "architecture", "config", "tied", "embedding", "head", "dtype",
           "quantisation", "stored_bytes")  # fmt: skip


def to_json(blueprint: Blueprint) -> str:
    """Return a blueprint as JSON, in one line.

    >>> to_json(Blueprint("", "", (Module("a", "norm", (("weight", (4,)),)),)))[:45]
    '{"modules":[["a","norm",[["weight",[4]]],null'
    """
    found: dict[str, Any] = {"modules": blueprint.modules}
    found |= {name: getattr(blueprint, name) for name in _FIELDS}
    found |= {"unlearnable": sorted(blueprint.unlearnable), "notes": blueprint.notes}
    return json.dumps(found, separators=(",", ":"), default=str)


def from_json(text: str) -> Blueprint:
    """Return the blueprint that `to_json` wrote; anything else is a `ModelError`."""
    try:
        found = json.loads(text)
        modules = tuple(_module(*each) for each in found["modules"])
        values = {name: found[name] for name in _FIELDS}
        values |= {"unlearnable": frozenset(found["unlearnable"]), "notes": tuple(found["notes"])}
        return Blueprint(modules=modules, **values)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(
            f"this is not a saved blueprint ({type(error).__name__}: {error}); make it again"
        ) from None


def _module(
    name: str, kind: Any, tensors: list[Any], weight: list[int] | None, groups: int | None
) -> Module:
    own = tuple((key, tuple(shape)) for key, shape in tensors)
    return Module(name, kind, own, None if weight is None else tuple(weight), groups)
