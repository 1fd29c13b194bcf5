"""What a saved update, PEFT's or ours, changes in its base; and the two as one live model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftType
from torch import Tensor, nn

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_from_transformers
from tunemath.runner.loading import read_tensors
from tunemath.runner.mapped import computed_changes, read_mapped
from tunemath.runner.models import load_adapter, peft_config, why_not_merged
from tunemath.runner.resolve import ResolvedModel
from tunemath.runner.tuned import CONFIG, TENSORS, space_of
from tunemath.space import Blueprint, read_blueprint
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.weights.changes import Change, Stored
from tunemath.space.weights.lora import (
    changed_base_at_start,
    computed_by_peft,
    lora_changes,
    replaced_by,
)
from tunemath.space.weights.names import stored_names
from tunemath.space.weights.reader import Weights
from tunemath.space.weights.recipe import Recipe, recipe_of

__all__ = ["SavedUpdate", "live_model", "read_update"]

_NO_WEIGHT = {
    "ADAPTION_PROMPT": "adaption prompts stand beside the attention's keys and values",
    "XLORA": "X-LoRA mixes its adapters anew for every token",
    "POLY": "Poly mixes its adapters by the task that is given",
    "SHADOW": "a shadow network runs beside the model",
}
# Between a parameter's name in a live model and in the adapter's file.
_ADDED = re.compile(r"\.(default|modules_to_save|base_layer)(?=\.|$)")
_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class SavedUpdate:
    """A saved update, read against its base."""

    model: ResolvedModel
    folder: Path
    kind: str
    """A method of ours, or PEFT's type, in lower case."""
    blueprint: Blueprint
    recipe: Recipe
    computed: str
    """Why PEFT computes the changes, layer by layer; empty where the files give them."""

    @property
    def rows(self) -> int | None:
        """The rows of the embedding after the update, where it has another number of them."""
        name = self.recipe.embedding
        rows = self.recipe.tensors[name].shape[0] if name else None
        return rows if name and rows != self.recipe.base.tensors[name].shape[0] else None


def read_update(model: ResolvedModel, folder: Path) -> SavedUpdate:
    """Return what a saved update changes in its base.

    Raises `ModelError` for an update that is no change of weights, with the reason, or that is not
    of this base; `NamesDiffer` where a parameter that it changes is not stored as one tensor.
    """
    base = Weights(model.folder)
    blueprint = read_blueprint(model.folder, fallback=_built)
    if blueprint.quantisation:
        raise ModelError(
            f"{model.folder} is quantised as {blueprint.quantisation}, and merging would round the "
            "update away with it; merge into the 16-bit base, then quantise the product"
        )
    if (folder / CONFIG).is_file():
        kind, changes, follows, computed = *_of_ours(model, folder, base, blueprint), ""
    else:
        kind, changes, follows, computed = _of_peft(model, folder, blueprint)
    recipe = recipe_of(base, blueprint, changes, follows)
    return SavedUpdate(model, folder, kind, blueprint, recipe, computed)


def live_model(update: SavedUpdate) -> Any:
    """Return the base with its update beside or in it, the weights mapped from their files."""
    model, folder = update.model, update.folder
    if update.kind == "full":
        return read_mapped(folder, str(folder))
    if (folder / CONFIG).is_file():
        base = read_mapped(model.folder, model.id, model.trust_remote_code)
        for name, tensor in read_tensors(folder / TENSORS).items():
            base.get_parameter(name).data = tensor
        return base
    return _live_peft(model, folder, update.rows)


def _as_saved(live: Any, saved: Mapping[str, Tensor]) -> Any:
    """Give what PEFT cast to the base's dtype the dtype back that it was saved in."""
    parameters: dict[str, nn.Parameter] = {
        _ADDED.sub("", name): parameter
        for name, parameter in live.named_parameters()
        if ".original_module." not in name
    }
    for name, tensor in saved.items():
        parameter = parameters.get(_ADDED.sub("", name))
        if parameter is not None and parameter.dtype.itemsize < tensor.dtype.itemsize:
            parameter.data = tensor
    return live


def _of_ours(
    model: ResolvedModel, folder: Path, base: Weights, blueprint: Blueprint
) -> tuple[str, dict[str, Change], bool]:
    """Return the method, the changes and whether what is tied follows, as it always does here."""
    space = space_of(folder)
    why = why_not_merged(space)
    if why is not None:
        raise ModelError(f"nothing to merge: {why}; deploy {folder} beside {model.id}")
    if space.method == "full":
        tuned = Weights(folder)
        known = {name: live for live, name in stored_names(tuned.tensors, blueprint).items()}
        names = {known.get(name, name): name for name in tuned.tensors}
        lacking = sorted(set(stored_names(base.tensors, blueprint)) - {*names, *blueprint.tied})
        if lacking:
            raise ModelError(f"{folder} has no {lacking[0]}; it is of another model, or not whole")
    else:
        tuned = Weights(folder / TENSORS)
        names = {name: name for name in tuned.tensors}
    changes = {}
    for live, name in names.items():
        if live not in blueprint.tied:
            shape = tuned.tensors[name].shape
            changes[live] = Change(live.rpartition(".")[0], Stored(tuned, name), shape=shape)
    return space.method, changes, True


def _of_peft(
    model: ResolvedModel, folder: Path, blueprint: Blueprint
) -> tuple[str, dict[str, Change], bool, str]:
    """Return PEFT's type, the changes, whether what is tied follows, and who computes them."""
    live = peft_config(folder)
    kind = PeftType(live.peft_type).value
    why = _NO_WEIGHT.get(kind, "")
    if live.is_prompt_learning:
        why = "virtual tokens stand before the input and change no weight"
    if why:
        raise ModelError(f"nothing to merge: {why}; deploy {folder} beside {model.id}")
    config = AdapterConfig.read(folder)
    start = changed_base_at_start(config)
    if start:
        raise ModelError(
            f"{folder} was started with init_lora_weights {start!r}, which took the first B A away "
            "from the base, and this base still has it; save the adapter again with PEFT's "
            "save_pretrained(…, path_initial_model_for_weight_conversion=…), and merge that"
        )
    computed = computed_by_peft(config, blueprint)
    if computed:
        found = computed_changes(
            lambda: _live_peft(model, folder), Weights(model.folder), blueprint
        )
        replaced = replaced_by(folder, dict(blueprint.tensors()))
        changes = {**replaced, **found}
    else:
        changes = lora_changes(folder, blueprint)
    return kind.lower(), changes, _follows(config, changes, blueprint), computed


def _live_peft(model: ResolvedModel, folder: Path, rows: int | None = None) -> Any:
    """Return the mapped base with PEFT's adapter, its embedding with so many rows."""
    base = read_mapped(model.folder, model.id, model.trust_remote_code)
    if rows is not None:
        base.resize_token_embeddings(rows, mean_resizing=False)
    return _as_saved(load_adapter(base, folder), read_tensors(folder / _WEIGHTS))


def _follows(config: AdapterConfig, changes: Mapping[str, Change], blueprint: Blueprint) -> bool:
    """Whether a tied head is changed as the embedding is, as PEFT itself lets it."""
    if config.get("ensure_weight_tying"):
        return True
    heads = [changes[name] for name in blueprint.tied if name in changes]
    rows = config.get("trainable_token_indices") or config.peft_type == "TRAINABLE_TOKENS"
    return bool(rows) and not heads


def _built(config: Mapping[str, Any], task_type: str | None) -> Blueprint:
    return blueprint_from_transformers(config, task_type=task_type)
