"""The changes that a LoRA adapter makes, from its two files: nothing is computed beforehand."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint
from tunemath.space.factors import MOVES_BASE, lora_scale, not_a_product
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.weights.changes import Change, LowRankStep, Stored
from tunemath.space.weights.reader import Weights

__all__ = ["changed_base_at_start", "computed_by_peft", "lora_changes", "replaced_by"]

_PREFIX = "base_model.model."
_WEIGHTS = "adapter_model.safetensors"
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B)(\.weight)?$")
_BIAS = re.compile(r"^(?P<module>.+)\.lora_B\.bias$")
_TOKENS = re.compile(r"^(?P<module>.+)\.token_adapter\.trainable_tokens_delta$")
_WRAPPED = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")


def changed_base_at_start(config: AdapterConfig) -> str:
    """Return the initialisation that took a product from the base's weights; empty if none did."""
    start = config.get("init_lora_weights")
    moves = isinstance(start, str) and start.lower().startswith(MOVES_BASE)
    return str(start) if moves else ""


def computed_by_peft(config: AdapterConfig, blueprint: Blueprint) -> str:
    """Return why an adapter's changes have to be computed by PEFT itself; empty if they need not.

    Factors alone give the update of LoRA's plain forms on linear layers, embeddings and
    convolutions without groups.
    """
    why = not_a_product(config)
    if why:
        return why
    if config["layer_replication"]:
        return "layer_replication repeats the base's layers"
    targets = config["target_modules"]
    if not isinstance(targets, str):
        names = {name.rpartition(".")[2] for name in targets or ()}
        odd = [m for m in blueprint.modules if m.short_name in names and _odd(m)]
        if odd:
            return f"{odd[0].name} is no plain linear layer"
    return ""


def _odd(module: Any) -> bool:
    return module.kind in ("attention", "experts") or (module.kind == "conv" and module.groups != 1)


def replaced_by(adapter: Path, parameters: Mapping[str, Any]) -> dict[str, Change]:
    """Return the parameters that stand in an adapter's file whole, by their live names.

    These are modules_to_save, trained biases, and the embeddings that PEFT saves beside.
    """
    weights = Weights(adapter / _WEIGHTS)
    found = {}
    for key in weights.tensors:
        name = _WRAPPED.sub("", key.removeprefix(_PREFIX))
        if name in parameters:
            found[name] = Change(
                name.rpartition(".")[0], Stored(weights, key), shape=weights.tensors[key].shape
            )
    return found


def lora_changes(adapter: Path, blueprint: Blueprint) -> dict[str, Change]:
    """Return each live parameter that a plain LoRA adapter changes, and how.

    Raises `ModelError` for a tensor that is none of LoRA's, a factor without its partner, and
    factors that do not fit the parameter.
    """
    config = AdapterConfig.read(adapter)
    weights = Weights(adapter / _WEIGHTS)
    shapes = dict(blueprint.tensors())
    found = replaced_by(adapter, shapes)
    factors: dict[str, dict[str, str]] = {}
    for key in weights.tensors:
        name = key.removeprefix(_PREFIX)
        if _WRAPPED.sub("", name) in found:
            continue
        if match := _FACTOR.match(name):
            factors.setdefault(match["module"], {})[match["part"][-1]] = key
            factors[match["module"]]["kind"] = match["part"][:-1]
        elif match := _BIAS.match(name):
            module = match["module"]
            rank = weights.tensors[key.replace("B.bias", "A.weight")].shape[0]
            scale = lora_scale(config, module, rank)
            change = Change(module, vector=(Stored(weights, key), scale))
            _put(found, f"{module}.bias", change, shapes, adapter)
        elif match := _TOKENS.match(name):
            module = match["module"]
            rows = _token_rows(config, module)
            change = Change(module, tokens=rows, token_rows=Stored(weights, key))
            _put(found, f"{module}.weight", change, shapes, adapter)
        else:
            raise ModelError(
                f"{adapter / _WEIGHTS} has {key}, which is no part of a LoRA adapter on this base; "
                "it is of another model, or of a newer PEFT"
            )
    for module, parts in factors.items():
        _add_step(found, module, parts, weights, config, blueprint, adapter)
    return found


def _add_step(
    found: dict[str, Change],
    module: str,
    parts: Mapping[str, str],
    weights: Weights,
    config: AdapterConfig,
    blueprint: Blueprint,
    adapter: Path,
) -> None:
    if not {"A", "B"} <= parts.keys():
        has, lacks = ("A", "B") if "A" in parts else ("B", "A")
        raise ModelError(
            f"{adapter / _WEIGHTS} has lora_{has} of {module} without lora_{lacks}; it is damaged"
        )
    a, b = (weights.tensors[parts[each]] for each in "AB")
    rank, d_out, d_in = a.shape[0], b.shape[0], math.prod(a.shape[1:])
    turned = parts["kind"] == "embedding_" or _is_turned(blueprint, module)
    stored_a, stored_b = (Stored(weights, parts[each]) for each in "AB")
    step = LowRankStep(stored_a, stored_b, lora_scale(config, module, rank), turned)
    shapes = dict(blueprint.by_name[module].tensors) if module in blueprint.by_name else {}
    shape = tuple(shapes.get("weight", ()))
    before = found.get(f"{module}.weight")
    if before is not None and before.shape:
        shape = before.shape
    fits = (d_in, d_out) if turned else (d_out, d_in)
    flat = (shape[0], math.prod(shape[1:])) if shape else ()
    if math.prod(b.shape[1:]) != rank or flat != fits:
        raise ModelError(
            f"{adapter / _WEIGHTS}: the factors of {module}, {list(a.shape)} and {list(b.shape)}, "
            f"do not fit its weight {list(shape) or '(there is none)'}; the adapter is of another "
            "model"
        )
    value = before.value if before is not None else None
    rows = before if before is not None else Change(module)
    found[f"{module}.weight"] = Change(
        module, value, rows.tokens, rows.token_rows, step, shape=rows.shape
    )


def _is_turned(blueprint: Blueprint, module: str) -> bool:
    known = blueprint.by_name.get(module)
    return known is not None and known.kind == "conv1d"


def _put(
    found: dict[str, Change], name: str, change: Change, shapes: Mapping[str, Any], adapter: Path
) -> None:
    if name not in shapes:
        raise ModelError(
            f"{adapter / _WEIGHTS} changes {name}, which the base does not have; the adapter is of "
            "another model"
        )
    found[name] = change


def _token_rows(config: AdapterConfig, module: str) -> tuple[int, ...]:
    asked = config["trainable_token_indices"]
    if isinstance(asked, Mapping):
        asked = next((rows for name, rows in asked.items() if module.endswith(name)), ())
    return tuple(asked or ())
