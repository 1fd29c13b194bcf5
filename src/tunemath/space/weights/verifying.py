"""A product that anybody made, held against what its base and the update give, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tunemath.space.blueprint import Blueprint
from tunemath.space.checkpoint import read_json
from tunemath.space.weights.names import stored_names
from tunemath.space.weights.reader import TORCH_DTYPES, Weights, row_blocks
from tunemath.space.weights.recipe import Recipe, parts_of
from tunemath.space.weights.rounding import Kept, rounded

__all__ = ["head_of", "held_against_product", "summary"]

_SHOWN = 5


def held_against_product(
    recipe: Recipe,
    blueprint: Blueprint,
    product: Weights,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Return what a product's tensors hold of the update, and which differ that should not.

    Of each changed tensor: `share` of ΔW that is in it and `ideal`, the share that rounding alone
    leaves; `rounding`, the relative error of that; `apart`, how far the product is from base and
    update rounded once, relative to ‖ΔW‖; `turned`, the share of ΔWᵀ of a square weight.
    """
    place = _places(recipe, blueprint, product)
    rows, differing, lacking = [], [], []
    for done, (name, each) in enumerate(recipe.tensors.items()):
        there = place.get(name)
        if there is None:
            if not (recipe.tied and name == recipe.head and not recipe.untied):
                lacking.append(name)
        elif product.tensors[there].shape != each.shape:
            differing.append(name)
        elif each.change is not None:
            rows.append(_fit(recipe, name, product, there))
        elif not _same(recipe.base, each.source, product, there):
            differing.append(name)
        tick(done + 1, len(recipe.tensors))
    return {
        "tensors": len(recipe.tensors),
        "by_tensor": rows,
        "lacking": lacking,
        "differing": len(differing),
        "differing_such_as": differing[:_SHOWN],
        "unchanged": sum(each.change is None for each in recipe.tensors.values()),
        **summary({row["name"]: row["kept"] for row in rows}, rows),
    }


def summary(kepts: Mapping[str, Kept], rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return ‖ΔW‖, share and error over all tensors."""
    total = Kept()
    for kept in kepts.values():
        total.also(kept)
    for row in rows or ():
        del row["kept"]
    return {"norm": math.sqrt(total.update), "share": total.share, "error": total.error}


def head_of(recipe: Recipe, blueprint: Blueprint, product: Weights) -> dict[str, Any]:
    """Return whether head and embedding are one in a product, by its configuration and weights."""
    config = read_json(product.folder / "config.json")
    declared = config.get("tie_word_embeddings", blueprint.config.get("tie_word_embeddings"))
    place = _places(recipe, blueprint, product)
    head, embedding = place.get(recipe.head), place.get(recipe.embedding)
    equal = None
    if head and embedding and product.tensors[head].shape == product.tensors[embedding].shape:
        equal = _same(product, embedding, product, head)
    return {
        "was_tied": recipe.tied,
        "should_be_tied": recipe.tied and not recipe.untied,
        "declared_tied": bool(declared),
        "head_stored": head is not None,
        "equal": equal,
    }


def _places(recipe: Recipe, blueprint: Blueprint, product: Weights) -> dict[str, str]:
    """Return the product's name of each of the recipe's tensors that it has."""
    ours = {name: live for live, name in stored_names(recipe.tensors, blueprint).items()}
    theirs = stored_names(product.tensors, blueprint)
    found = {}
    for name in recipe.tensors.keys() | {recipe.head, recipe.embedding}:
        there = name if name in product.tensors else theirs.get(ours.get(name, name))
        if there is not None:
            found[name] = there
    return found


def _fit(recipe: Recipe, name: str, product: Weights, there: str) -> dict[str, Any]:
    each = recipe.tensors[name]
    assert each.change is not None
    form = str(TORCH_DTYPES[product.tensors[there].dtype]).removeprefix("torch.")
    kept, weight, start = Kept(), 0.0, 0
    once, twice = (Kept(), Kept()), (Kept(), Kept())
    for before, after, delta in parts_of(recipe, name):
        rows = slice(start, start + len(before)) if before.ndim else None
        start += len(before) if before.ndim else 0
        stays = rounded(before, form)
        moved = product.read(there, rows).float() - stays
        kept.add(moved, delta)
        _add(once, moved, rounded(after, form) - stays, delta)
        _add(twice, moved, rounded(stays + delta, form) - stays, delta)
        weight += float(before.square().sum(dtype=torch.float64))
    # Tools differ in whether they round the base before they add to it; either is right.
    ideal, apart = min(once, twice, key=lambda each: each[1].rest)
    update = kept.update or 1.0
    found = {
        "name": name,
        "module": each.change.module,
        "norm": math.sqrt(kept.update),
        "relative": math.sqrt(kept.update / weight) if weight else None,
        "share": kept.share,
        "error": kept.error,
        "moved": math.sqrt(kept.moved / update),
        "ideal": ideal.share,
        "rounding": ideal.error,
        "apart": math.sqrt(apart.rest / update),
        "elements": math.prod(each.shape),
        "kept": kept,
    }
    if found["apart"] > 0.5 and len(each.shape) == 2 and each.shape[0] == each.shape[1]:
        found["turned"] = _turned(recipe, name, product, there)
    return found


def _add(pair: tuple[Kept, Kept], moved: Tensor, wanted: Tensor, delta: Tensor) -> None:
    """Count what is wanted of ΔW, and how far from it the product moved."""
    pair[0].add(wanted, delta)
    pair[1].add(moved, wanted)


def _turned(recipe: Recipe, name: str, product: Weights, there: str) -> float:
    """Return the share of ΔWᵀ in a product, as A and B swapped give it; 0 without factors."""
    each = recipe.tensors[name]
    step = each.change.step if each.change else None
    if step is None:
        return 0.0
    kept, other = Kept(), replace(step, transposed=not step.transposed)
    for rows in row_blocks(each.shape, 2**20):
        before = recipe.base.read(each.source, rows).float()
        kept.add(product.read(there, rows).float() - before, other.rows(each.shape, rows))
    return kept.share


def _same(first: Weights, name: str, second: Weights, other: str) -> bool:
    """Whether two tensors are equal, the first as the second's dtype holds it."""
    for rows in row_blocks(first.tensors[name].shape, 2**20):
        there: Tensor = second.read(other, rows)
        if not torch.equal(first.read(name, rows).to(there.dtype), there):
            return False
    return True
