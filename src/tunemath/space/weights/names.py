"""Under which name a live model's parameter is stored in its checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tunemath.space.blueprint import Blueprint
from tunemath.space.blueprint.names import live_names

__all__ = ["stored_names"]


def stored_names(stored: Iterable[str], blueprint: Blueprint) -> Mapping[str, str]:
    """Return each live parameter's stored name, where it is one stored tensor as it is.

    Left out are parameters that are made of several tensors at load, such as a mixture's fused
    experts, and those that are stored only as what they are tied to.
    """
    shapes = dict(blueprint.tensors())
    roots = {name.partition(".")[0] for name in shapes}
    found: dict[str, str] = {}
    for name, live in live_names(stored, blueprint.model_type).items():
        root, _, inside = live.partition(".")
        options = [live, *(f"{each}.{live}" for each in roots)]
        if root not in roots:
            options.insert(1, inside)
        known = next((each for each in options if each in shapes), None)
        if known is not None:
            found.setdefault(known, name)
    return found
