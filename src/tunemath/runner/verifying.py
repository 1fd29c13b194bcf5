"""A merged model, ours or anybody's, held against its base and its update."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor

from tunemath.runner.mapped import Cast, read_mapped, stored_dtype
from tunemath.runner.origins import trained_on
from tunemath.runner.probing import TOLERANCES, compared, probe_logits, probe_rows
from tunemath.runner.progress import Progress, silent
from tunemath.runner.resolve import ResolvedModel
from tunemath.runner.tokens import new_tokens, stop_tokens
from tunemath.runner.trainer import Row
from tunemath.runner.updates import SavedUpdate, live_model, read_update
from tunemath.space.weights.reader import Weights
from tunemath.space.weights.rounding import rounded
from tunemath.space.weights.verifying import head_of, held_against_product

__all__ = ["beside", "held", "probed", "verify_product"]


def verify_product(
    model: ResolvedModel,
    adapter: Path,
    product: Path,
    probe: bool = True,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Return the evidence of whether a product is the base with the update in it.

    Its tensors are held against base and update one at a time, and its logits compared on
    built-in prompts unless ``probe`` is off.
    """
    update = read_update(model, adapter)
    weights = held(update, product, progress)
    dtype = str(stored_dtype(product)).removeprefix("torch.")
    evidence = {
        "update": update.kind,
        "dtype": dtype,
        "weights": weights,
        "head": head_of(update.recipe, update.blueprint, Weights(product)),
        **beside(model, adapter, product, update),
    }
    if probe and not weights["lacking"]:
        evidence |= probed(update, product, None, dtype, (), progress)
    return evidence


def held(update: SavedUpdate, product: Path, progress: Progress = silent) -> dict[str, Any]:
    """Return what a product's tensors hold of an update."""
    return held_against_product(
        update.recipe, update.blueprint, Weights(product), partial(progress, "reading back")
    )


def beside(
    model: ResolvedModel, adapter: Path, product: Path, update: SavedUpdate | None
) -> dict[str, Any]:
    """Return what is known of the base, the tokens and the stops, beside the weights."""
    trained = trained_on(adapter)
    return {
        "base": {
            "id": model.id,
            "sha256": model.weights_hash(),
            "trained_on": None if trained is None else trained.sha256,
        },
        "tokens": new_tokens(model.folder, adapter, update and update.recipe),
        "stop": stop_tokens(adapter, product),
    }


def probed(
    update: SavedUpdate,
    product: Path,
    rows: tuple[Sequence[Row], str] | None,
    dtype: str,
    forms: Sequence[str] = (),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Return how far the product's logits are from those of base and update side by side.

    Both run from mapped weights in float32. For each of ``forms``, also the KL that the product's
    weights rounded to it cost, and beside it what rounding the base alone costs.
    """
    progress("comparing logits", 0, 2)
    prompts, about = rows or probe_rows(update.model.folder, _vocabulary(update))
    live = live_model(update)
    reference = probe_logits(live, prompts)
    names = {
        f"{each.change.module}.{name.rpartition('.')[2]}"
        for name, each in update.recipe.changed()
        if each.change is not None and len(each.shape) == 2
    }
    found: dict[str, Any] = {
        "positions": len(reference),
        "prompts": about,
        "tolerance": TOLERANCES[dtype],
    }
    alone = {
        form: {"base_alone": compared(reference, probe_logits(live, prompts, cast))}
        for form in forms
        if isinstance(live, PeftModel) and (cast := _rounding(form, names, base_only=True))
    }
    del live
    progress("comparing logits", 1, 2)
    merged = read_mapped(product, str(product), update.model.trust_remote_code)
    found["adapter_vs_reloaded_merged"] = compared(reference, probe_logits(merged, prompts))
    if forms:
        found["forms"] = {
            form: alone.get(form, {})
            | {"merged": compared(reference, probe_logits(merged, prompts, _rounding(form, names)))}
            for form in forms
        }
    progress("comparing logits", 2, 2)
    return found


def _vocabulary(update: SavedUpdate) -> int:
    recipe = update.recipe
    return recipe.tensors[recipe.embedding].shape[0] if recipe.embedding else 32


def _rounding(form: str, names: set[str], base_only: bool = False) -> Cast:
    """Return the cast that rounds the matrices that an update changes."""

    def cast(name: str, values: Tensor) -> Tensor:
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        own = not base_only or ".base_layer." in name
        if own and plain in names:
            return rounded(values.float(), form)
        return values.float()

    return cast
