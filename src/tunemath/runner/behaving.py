"""What an adapter or a model that was made of others does beside them, logit by logit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunemath.errors import ModelError
from tunemath.runner.mapped import Cast, read_mapped
from tunemath.runner.probing import (
    TOLERANCES,
    compared,
    probe_logits,
    probe_rows,
    vocabulary_of,
)
from tunemath.runner.progress import Progress, silent
from tunemath.runner.resolve import ResolvedModel
from tunemath.runner.trainer import Row
from tunemath.runner.updates import SavedUpdate, live_model, read_update
from tunemath.space.weights.names import stored_names
from tunemath.space.weights.recipe import NamesDiffer, parts_of

__all__ = ["Unmeasured", "behaviour"]

_ADAPTER = "adapter_config.json"


class Unmeasured(ModelError):
    """What a product was made of can't be run here, so there is nothing to compare it with."""


def behaviour(
    product: Path,
    sources: Mapping[str, Path],
    base: ResolvedModel | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Return how far a product's logits are from those of what it was made of, in float32.

    ``product`` and ``sources`` are folders of models, or of adapters of ``base``. ``beside`` has
    KL(product ‖ source) by the source's name, in nats a position. An adapter is read back by PEFT,
    and held against the base with its update added: the two are one model within ``tolerance``.
    Raises `ModelError` where they are not, where the product can't be read back or a logit is not a
    number; `Unmeasured` where a source can't be run.
    """
    steps = 1 + len(sources)
    progress("comparing logits", 0, steps)
    (first, folder), *others = sources.items()
    model = _source(folder, base)
    rows, about = probe_rows(product if base is None else base.folder, vocabulary_of(model))
    reference = probe_logits(model, rows)
    del model
    progress("comparing logits", 1, steps)
    own, agreement = _own(product, rows, base)
    beside = {first: compared(reference, own)}
    for done, (name, folder) in enumerate(others, 2):
        progress("comparing logits", done, steps)
        beside[name] = compared(probe_logits(_source(folder, base), rows), own)
    progress("comparing logits", steps, steps)
    return {"positions": len(own), "prompts": about, **agreement, "beside": beside}


def _source(folder: Path, base: ResolvedModel | None) -> Any:
    try:
        return _model(folder, _update(folder, base))
    except ModelError as why:
        raise Unmeasured(str(why)) from why


def _own(
    product: Path, rows: list[Row], base: ResolvedModel | None
) -> tuple[Tensor, dict[str, Any]]:
    """Return a product's logits (N, V); of an adapter also by how much they are the sum's."""
    update = _update(product, base)
    own = probe_logits(_model(product, update), rows)
    if own.isnan().any():
        raise ModelError(
            "the product's logits are not numbers; nothing was written. --no-probe writes it as "
            "it is"
        )
    if update is None:
        return own, {}
    model = update.model
    plain = read_mapped(model.folder, model.id, model.trust_remote_code)
    found = compared(probe_logits(plain, rows, _adding(update)), own)
    tolerance = TOLERANCES["float32"]
    if found["max_logit_difference"] > tolerance:
        raise ModelError(
            f"the adapter, read back by PEFT, is not the base with its update added: a logit "
            f"differs by {found['max_logit_difference']:.2g} (at most {tolerance:g}); nothing was "
            "written. --no-probe writes it as it is"
        )
    return own, {"tolerance": tolerance, "adapter_vs_added": found}


def _update(folder: Path, base: ResolvedModel | None) -> SavedUpdate | None:
    if base is None or not (folder / _ADAPTER).is_file():
        return None
    try:
        return read_update(base, folder)
    except NamesDiffer as why:
        raise Unmeasured(str(why)) from why


def _model(folder: Path, update: SavedUpdate | None) -> Any:
    return read_mapped(folder, str(folder)) if update is None else live_model(update)


def _adding(update: SavedUpdate) -> Cast:
    """Return the cast that adds an update to the base's parameters."""
    recipe, tied = update.recipe, update.blueprint.tied
    stored = stored_names(recipe.base.tensors, update.blueprint)

    def cast(name: str, values: Tensor) -> Tensor:
        place = stored.get(name, name)
        if place not in recipe.tensors and name in tied:
            place = stored[tied[name]]
        if place not in recipe.tensors or recipe.tensors[place].change is None:
            return values.float()
        parts = [after for _, after, _ in parts_of(recipe, place)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    return cast
