"""Read a model's blueprint from its files: configuration and headers, no weight, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tunemath.errors import ModelError
from tunemath.extras import install_command
from tunemath.space.blueprint.config import blueprint_of_config
from tunemath.space.blueprint.hold import held_against, stored_as
from tunemath.space.blueprint.kinds import blueprint_of_weights
from tunemath.space.blueprint.names import live_weights, without_buffers
from tunemath.space.blueprint.quantised import (
    Weight,
    declared_quantisation,
    is_buffer,
    logical_weights,
    refuse_packed,
)
from tunemath.space.blueprint.record import Blueprint
from tunemath.space.checkpoint import read_checkpoint, read_json, read_tensor

__all__ = ["read_blueprint"]

Fallback = Callable[[Mapping[str, Any], str | None], Blueprint]

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# What a fallback may lack; that it can't import anything else is no reason to guess.
_LIBRARIES = ("torch", "transformers")
_GOOD = "a model's folder, a config.json, a .safetensors file, an index, or a .gguf file"


def read_blueprint(
    path: str | Path, *, task_type: str | None = None, fallback: Fallback | None = None
) -> Blueprint:
    """Return the blueprint of a model from its files, reading headers only.

    ``path`` is a model's folder, a config.json, a safetensors file, the index of several, or a
    GGUF file. A configuration gives the modules, and the weights are held against it. Weights
    without one give them by name and shape; then nothing tells the family, so ``model_type`` and
    ``config`` are empty.

    ``task_type`` is PEFT's, such as SEQ_CLS; with a configuration it chooses the class.
    ``fallback`` builds the blueprint of a family that is not known here, from the configuration
    and the task. Without it, or where it fails, such a family's weights speak for themselves:
    that is a guess, and ``notes`` says so and why.
    """
    path = Path(path)
    gguf = _gguf_in(path)
    if gguf is not None:
        return _from_gguf(gguf, task_type)
    config_file, weights_at = _files(path)
    config = read_json(config_file) if config_file else {}
    if "peft_type" in config:
        raise ModelError(
            f"{config_file} is an adapter's configuration; give the base model's folder, which it "
            "names as base_model_name_or_path"
        )
    if weights_at is None:
        return _from_config(path, config, task_type, fallback)
    return _from_weights(weights_at, config, task_type, fallback)


def _gguf_in(path: Path) -> Path | None:
    """Return the GGUF file that a path means, if any: itself, or the only model in a folder."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if not path.is_dir():
        raise ModelError(f"{path} does not exist; expected {_GOOD}")
    if any((path / name).is_file() for name in _WEIGHTS):
        return None
    files = sorted(file for file in path.glob("*.gguf") if file.is_file())
    models = [file for file in files if "-of-" not in file.name or "-00001-of-" in file.name]
    if len(models) > 1:
        raise ModelError(
            f"{path} holds {len(models)} GGUF models ({models[0].name}, {models[1].name}, …); "
            "give one of them"
        )
    return models[0] if models else None


def _files(path: Path) -> tuple[Path | None, Path | None]:
    """Return the configuration and the weights that a path means, each if it is there."""
    if path.is_dir():
        config = path / "config.json"
        return (config if config.is_file() else None), path
    if path.suffix == ".safetensors" or path.name.endswith(".index.json"):
        beside = path.parent / "config.json"
        whole = path.name in _WEIGHTS and beside.is_file()
        return (beside if whole else None), path
    if path.suffix == ".json":
        return path, None
    raise ModelError(
        f"{path} is not a file that is read; expected {_GOOD}. Weights in pickle (.bin, .pt) can "
        "run any code when they are read, so they are refused"
    )


def _from_config(
    path: Path, config: Mapping[str, Any], task_type: str | None, fallback: Fallback | None
) -> Blueprint:
    """Return the blueprint that a configuration alone gives."""
    known = blueprint_of_config(config, task_type=task_type)
    if known is None and fallback is not None:
        try:
            known = fallback(config, task_type)
        except ModuleNotFoundError as error:
            raise ModelError(f"{_unknown(path, config)} ({_absent(error)})") from None
    if known is None:
        raise ModelError(_unknown(path, config))
    return _as_declared(known, config)


def _absent(error: ModuleNotFoundError) -> str:
    """Return which training library is not installed; any other lack is a fault, and raised."""
    if error.name not in _LIBRARIES:
        raise error
    return f"{error.name} is not installed"


def _unknown(path: Path, config: Mapping[str, Any]) -> str:
    family = config.get("model_type")
    if not family:
        return f"{path} names no model_type; expected the config.json of a transformers model"
    return (
        f"{path} describes a {family}, whose modules are not known without transformers; "
        f"run: {install_command('train')}; or give the folder with the weights"
    )


def _as_declared(blueprint: Blueprint, config: Mapping[str, Any]) -> Blueprint:
    """Return the blueprint with the dtype and the quantisation that the configuration names."""
    dtype = config.get("dtype") or config.get("torch_dtype")
    return replace(
        blueprint,
        dtype=dtype.removeprefix("torch.") if isinstance(dtype, str) else blueprint.dtype,
        quantisation=declared_quantisation(config),
    )


def _from_weights(
    path: Path, config: Mapping[str, Any], task_type: str | None, fallback: Fallback | None
) -> Blueprint:
    """Return the blueprint of weights, with the modules of the configuration where it is known."""
    folder = path if path.is_dir() else path.parent
    stored = read_checkpoint(path)
    if not stored.tensors:
        raise ModelError(f"{path} has a weights file without a tensor; download it again")
    if all(name.startswith("base_model.model.") for name in stored.tensors):
        raise ModelError(f"{path} holds an adapter, not a model; give the base model's folder")
    try:
        logical = logical_weights(stored.tensors, partial(read_tensor, folder))
        refuse_packed(without_buffers(logical))
        weights = live_weights(logical, str(config.get("model_type") or ""))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    known = blueprint_of_config(config, task_type=task_type) if config else None
    complete, why = known is not None, ""
    if known is None:
        known, why = _built(config, task_type, fallback)
    if known is None:
        found = _of_weights_alone(weights, config, why)
    else:
        untied = config.get("tie_word_embeddings") is False
        known = _as_declared(known, config)
        found = held_against(path, known, weights, complete=complete, untied=untied)
    return replace(found, notes=(*found.notes, *stored.notes))


def _built(
    config: Mapping[str, Any], task_type: str | None, fallback: Fallback | None
) -> tuple[Blueprint | None, str]:
    """Return what the fallback builds of a family that is not known; None and why where it can't.

    A family that transformers doesn't know either still has its weights.
    """
    if not config:
        return None, "there is no config.json beside them"
    if fallback is None:
        return None, f"a {config.get('model_type') or 'model'} is not known without transformers"
    try:
        return fallback(config, task_type), ""
    except ModuleNotFoundError as error:
        return None, f"{_absent(error)}; the extra train brings it"
    except ModelError as error:
        return None, str(error)


def _of_weights_alone(
    weights: Mapping[str, Weight], config: Mapping[str, Any], why: str
) -> Blueprint:
    """Return the blueprint that names and shapes give; a configuration says if the head is tied."""
    weights = {n: w for n, w in without_buffers(weights).items() if not is_buffer(w)}
    guess = (
        "what each module is, the head and what is tied were told from the weights' names and "
        f"shapes alone, and may be otherwise: {why}"
    )
    found = replace(stored_as(blueprint_of_weights(weights), weights), notes=(guess,))
    if not config:
        return found
    tied = dict(found.tied)
    head, embedding = (found.by_name.get(name) for name in (found.head, found.embedding))
    if config.get("tie_word_embeddings") and head and embedding and head.shape == embedding.shape:
        tied[f"{found.head}.weight"] = f"{found.embedding}.weight"
    classes = config.get("architectures")
    return replace(
        found,
        model_type=str(config.get("model_type") or ""),
        architecture=str(classes[0]) if isinstance(classes, list) and classes else "",
        config=config,
        tied=tied,
    )


def _from_gguf(path: Path, task_type: str | None) -> Blueprint:
    from tunemath.space.blueprint.gguf import read_gguf
    from tunemath.space.blueprint.gguf_model import gguf_config, gguf_weights

    gguf = read_gguf(path)
    config = gguf_config(path, gguf)
    known = blueprint_of_config(config, task_type=task_type or "CAUSAL_LM")
    if known is None:
        raise ModelError(_unknown(path, config))
    return held_against(path, known, gguf_weights(path, gguf), complete=True)
