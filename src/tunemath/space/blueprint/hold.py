"""Hold a blueprint against the weights of a file: are both of one model?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tunemath.errors import ModelError
from tunemath.space.blueprint.quantised import Weight, main_dtype, main_form
from tunemath.space.blueprint.record import Blueprint, Module

__all__ = ["held_against", "stored_as"]


def held_against(
    path: Path,
    blueprint: Blueprint,
    weights: Mapping[str, Weight],
    complete: bool,
    untied: bool = False,
) -> Blueprint:
    """Return the blueprint with the dtype, quantisation and bytes that the file has.

    ``weights`` have live names. Each that the blueprint knows must have its shape; others are left
    out of account, as transformers does. Where ``complete``, every parameter inside a numbered
    layer must be there; a head or an embedding may be lacking, as in a base model's file.
    ``untied`` says that the configuration itself has the head apart: then it is where both are
    stored, as in T5 1.1 and Flan-T5, whose class ties it otherwise.
    """
    shapes = dict(blueprint.tensors())
    roots = {name.partition(".")[0] for name in shapes}
    found: dict[str, Weight] = {}
    turned: set[str] = set()
    for stored, weight in weights.items():
        name = _known_as(stored, shapes, roots)
        if name is None or name in found:
            continue
        found[name] = weight
        module = blueprint.by_name[name.rpartition(".")[0]]
        if weight.form and module.kind == "conv1d":
            turned.add(module.name)
        if weight.shape not in _shapes_of(module, shapes[name], weight.form != ""):
            raise ModelError(
                f"{path}: {stored} is {list(weight.shape)}, but by the configuration "
                f"{name} of {blueprint.architecture} is {list(shapes[name])}; "
                "config and weights are not of one model"
            )
    if complete:
        _hold_layers(path, blueprint, shapes, found)
    head = f"{blueprint.head}.weight"
    if untied and head in found and blueprint.tied.get(head) in found:
        tied = {name: first for name, first in blueprint.tied.items() if name != head}
        blueprint = replace(blueprint, tied=tied)
    # Of parameters that are one, a file may hold either or both; in memory they are one.
    twice = {name for name, first in blueprint.tied.items() if first in found}
    modules = tuple(_turned(m) if m.name in turned else m for m in blueprint.modules)
    return stored_as(
        replace(blueprint, modules=modules), {n: w for n, w in found.items() if n not in twice}
    )


def _shapes_of(
    module: Module, shape: tuple[int, ...], quantised: bool
) -> tuple[tuple[int, ...], ...]:
    """Return the shapes that a parameter may be stored in.

    Some versions of a family store experts with the last two dimensions the other way round; a
    quantised Conv1D is a linear layer.
    """
    turned = (*shape[:-2], *shape[:-3:-1])
    if module.kind == "conv1d" and quantised:
        return (turned,)
    return (shape, turned) if module.kind == "experts" and len(shape) == 3 else (shape,)


def _turned(module: Module) -> Module:
    """Return the linear layer that a quantised Conv1D becomes."""
    tensors = tuple((key, shape[::-1]) for key, shape in module.tensors)
    return Module(module.name, "linear", tensors)


def stored_as(blueprint: Blueprint, weights: Mapping[str, Weight]) -> Blueprint:
    """Return the blueprint with the weights' dtype, quantisation and bytes."""
    return replace(
        blueprint,
        dtype=main_dtype(weights.values()) or blueprint.dtype,
        quantisation=main_form(weights.values()) or blueprint.quantisation,
        stored_bytes=sum(weight.nbytes for weight in weights.values()),
    )


def _known_as(name: str, shapes: Mapping[str, object], roots: set[str]) -> str | None:
    """Return the model's name of a stored parameter; a base model's prefix may come or go."""
    if name in shapes:
        return name
    root, _, inside = name.partition(".")
    if inside in shapes and root not in roots:
        return inside
    return next((f"{root}.{name}" for root in roots if f"{root}.{name}" in shapes), None)


def _hold_layers(
    path: Path,
    blueprint: Blueprint,
    shapes: Mapping[str, tuple[int, ...]],
    found: Mapping[str, Weight],
) -> None:
    """Refuse weights that lack a parameter of a numbered layer."""
    lacking = [
        name
        for name in shapes
        if name not in found and name not in blueprint.tied and re.search(r"\.\d+\.", f".{name}")
    ]
    if lacking:
        why = "config and weights are not of one model"
        if blueprint.quantisation and not any(weight.form for weight in found.values()):
            why = (
                f"the configuration says that they are quantised as {blueprint.quantisation}, and "
                "their layout is none that is known; use the model's unquantised version"
            )
        raise ModelError(
            f"{path}: the weights lack {len(lacking):,} of the {len(shapes):,} parameters that "
            f"{blueprint.architecture} has by its configuration, such as {lacking[0]}; {why}"
        )
