"""Taking an update out of merged weights again, where it was only added to them."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tunemath.errors import ModelError
from tunemath.runner.progress import Progress, silent
from tunemath.runner.resolve import ResolvedModel, weights_hash
from tunemath.runner.updates import read_update
from tunemath.space.weights.carried import carry
from tunemath.space.weights.merging import write_product
from tunemath.space.weights.pairing import pair_up
from tunemath.space.weights.provenance import Provenance, Source, read_provenance
from tunemath.space.weights.reader import row_blocks
from tunemath.space.weights.recipe import Recipe
from tunemath.space.weights.verifying import summary
from tunemath.storage import new_folder

__all__ = ["unmerge_update"]


def unmerge_update(
    merged: ResolvedModel,
    adapter: Path,
    out: Path,
    base: ResolvedModel | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write merged weights without an update that was added to them to a new folder.

    ``s·B A`` is subtracted in float32 and each tensor rounded once, so what merging rounded away
    stays away; against ``base``, if it is given, it is measured how much. Raises `ModelError` for
    an update that replaces or multiplies weights, and, unless ``force``, where the record of the
    merged weights does not say that this update is in them.
    """
    own = weights_hash(adapter)
    if not force:
        _refuse_not_merged(merged, adapter, own)
    update = read_update(merged, adapter)
    for name, each in update.recipe.changed():
        if each.change is not None and not each.change.additive:
            raise ModelError(
                f"{adapter} does not only add to {name}, so it cannot be subtracted from it; take "
                "the base itself, which has what was there before"
            )
    with new_folder(out) as part:
        kepts = write_product(
            update.recipe, part, subtract=True, tick=partial(progress, "unmerging")
        )
        evidence: dict[str, Any] = {
            "update": update.kind,
            "changed": len(kepts),
            "norm": summary({name: next(iter(kept.values())) for name, kept in kepts.items()})[
                "norm"
            ],
        }
        carry(merged.folder, part)
        if base is not None:
            evidence["left"] = _left(update.recipe, base.folder, part)
        sources = (
            Source("base", merged.reference, merged.weights_hash()),
            Source("adapter", adapter.name, own),
        )
        Provenance("unmerge", sources, {"force": force}, evidence).write(part)
    return {"folder": str(out), **evidence}


def _refuse_not_merged(merged: ResolvedModel, adapter: Path, own: str) -> None:
    record = read_provenance(merged.folder)
    inside = record.of("adapter") if record is not None and record.operation == "merge" else ()
    if any(source.sha256 == own for source in inside):
        return
    names = " and ".join(source.name for source in inside)
    has = f"that {names} is in it" if names else "of no update that is in it"
    raise ModelError(
        f"{merged.folder} has a record {has}, not {adapter}; subtracting it would leave neither "
        "the base nor the merged model. --force subtracts it all the same"
    )


def _left(recipe: Recipe, base: Path, part: Path) -> dict[str, Any]:
    """Return how far the changed tensors are from the base's, in all."""
    pairing = pair_up(base, part)
    places = {pair.after: pair.before for pair in pairing.pairs if not pair.resized}
    apart, weight, exact, count = 0.0, 0.0, 0, 0
    for name, each in recipe.changed():
        if name not in places:
            continue
        square = 0.0
        for rows in row_blocks(each.shape, 2**20):
            first = pairing.base.read(places[name], rows).float()
            second = pairing.tuned.read(name, rows).float()
            square += float((second - first).square().sum(dtype=torch.float64))
            weight += float(first.square().sum(dtype=torch.float64))
        apart, exact, count = apart + square, exact + (square == 0.0), count + 1
    return {
        "norm": math.sqrt(apart),
        "relative": math.sqrt(apart / weight) if weight else 0.0,
        "identical": exact,
        "compared": count,
    }
