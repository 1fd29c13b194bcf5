"""Blueprints from what only torch and transformers can give: a live module, any configuration."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn.utils import parametrize
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from tunemath.errors import ModelError, is_of_memory
from tunemath.runner.cache import keep, recall
from tunemath.runner.loading import one_line
from tunemath.runner.quiet import quiet_libraries
from tunemath.space import Blueprint, Module
from tunemath.space.blueprint import Kind
from tunemath.space.blueprint.config import class_name
from tunemath.space.blueprint.quantised import declared_quantisation
from tunemath.space.blueprint.saved import from_json, to_json
from tunemath.storage import canonical_json, hash_bytes

__all__ = ["blueprint_from_transformers", "blueprint_of", "build_from_config", "classes_of"]

# Of each of PEFT's tasks, the tables in which transformers names its classes; the first that has
# the model type counts.
_TABLES = {
    "CAUSAL_LM": ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT"),
    "SEQ_2_SEQ_LM": ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ"),
    "SEQ_CLS": ("SEQUENCE_CLASSIFICATION", "IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION"),
    "TOKEN_CLS": ("TOKEN_CLASSIFICATION",),
    "QUESTION_ANS": ("QUESTION_ANSWERING",),
    "FEATURE_EXTRACTION": ("",),
}

# What a configuration may hold that says how a model runs, not what it is.
_NOT_SHAPE = ("quantization_config", "auto_map", "attn_implementation", "_attn_implementation",
              "_attn_implementation_internal", "_attn_implementation_autoset")  # fmt: skip


def classes_of(model_type: str) -> dict[str, str]:
    """Return the name of transformers' class for each of PEFT's tasks that the family has."""
    found = {}
    for task, tables in _TABLES.items():
        for table in tables:
            middle = f"_FOR_{table}" if table else ""
            name = getattr(modeling_auto, f"MODEL{middle}_MAPPING_NAMES").get(model_type)
            if name:
                found[task] = name if isinstance(name, str) else name[0]
                break
    return found


def blueprint_from_transformers(
    config: Mapping[str, Any], *, task_type: str | None = None, cache: Path | None = None
) -> Blueprint:
    """Return the blueprint of the model that transformers builds from a config.json.

    The model is built on the meta device, without weights and without code from elsewhere, and
    the blueprint is kept in ``cache``, a folder (tunemath's own unless given), so that it is built
    once for a configuration, a task and a version of transformers. Raises `ModelError` where
    transformers cannot build it; the message has its reason.
    """
    about = canonical_json([3, transformers.__version__, task_type, dict(config)])
    key = hash_bytes(about)
    kept = recall("blueprints", key, cache)
    if kept is not None:
        with suppress(ModelError):  # damaged
            return from_json(kept)
    text = to_json(blueprint_of(build_from_config(config, task_type)))
    keep("blueprints", key, text, cache)
    return from_json(text)


def build_from_config(
    config: Mapping[str, Any], task_type: str | None, device: str = "meta"
) -> Any:
    """Return the model that transformers builds from a config.json, with no code from elsewhere.

    Raises `ModelError` where transformers cannot build it; the message has its reason.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"the configuration has {model_type!r:.60} as model_type, which transformers "
            f"{transformers.__version__} does not have; a newer one may"
        )
    name = class_name(config, classes_of(model_type), task_type)
    wanted = getattr(transformers, name, None)
    if not isinstance(wanted, type) or not issubclass(wanted, transformers.PreTrainedModel):
        raise ModelError(
            f"the configuration of this {model_type} has {name!r:.60} as its class, which "
            f"transformers {transformers.__version__} does not have; set task_type to choose one"
        )
    values = {key: value for key, value in config.items() if key not in _NOT_SHAPE}
    try:
        with quiet_libraries(), torch.device(device):
            return wanted._from_config(CONFIG_MAPPING[model_type].from_dict(values))
    except Exception as error:  # a configuration is a stranger's, and may fail anywhere
        if is_of_memory(error):
            raise
        raise ModelError(
            f"transformers {transformers.__version__} cannot build {name} from this configuration: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error


def blueprint_of(model: nn.Module) -> Blueprint:
    """Return the blueprint of a live module, on any device, the meta device included.

    Quantised linear layers are given their logical shape. Buffers are left out. A module that is
    reachable under two names has the first, as in ``named_modules()``.
    """
    modules, first, tied = [], {}, {}
    frozen = set()
    for name, module in model.named_modules():
        packed = _packed_linear(module)
        own = packed or dict(module.named_parameters(recurse=False, remove_duplicate=False))
        kind, made = "linear" if packed else _kind(module), _made_weight(module)
        if not own and made is None:
            continue
        tensors = tuple((key, _logical_shape(module, kind, key, p)) for key, p in own.items())
        groups = getattr(module, "groups", 1) if kind == "conv" else 1
        modules.append(Module(name, kind, tensors, made, groups))
        for key, parameter in own.items():
            full = f"{name}.{key}" if name else key
            if id(parameter) in first:
                tied[full] = first[id(parameter)]
            else:
                first[id(parameter)] = full
            if not parameter.requires_grad:
                frozen.add(full)
    config: Any = getattr(model, "config", None)
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    return Blueprint(
        model_type=getattr(config, "model_type", "") or "",
        architecture=type(model).__name__,
        modules=tuple(modules),
        config=values,
        tied=tied,
        embedding=_name_of(model, "get_input_embeddings"),
        head=_name_of(model, "get_output_embeddings"),
        dtype=_main_dtype(model),
        unlearnable=frozenset(frozen),
        quantisation=declared_quantisation(values),
    )


def _kind(module: nn.Module) -> Kind:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, Conv1D):
        return "conv1d"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.modules.conv._ConvNd) and not module.transposed:
        return "conv"
    if isinstance(module, nn.MultiheadAttention):
        return "attention"
    if "norm" in type(module).__name__.lower():
        return "norm"
    if any(p.dim() == 3 for p in module.parameters(recurse=False)) and (
        "expert" in type(module).__name__.lower()
    ):
        return "experts"
    return "other"


def _packed_linear(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weight and bias of a linear layer that other tensors stand for; else nothing.

    HQQ's HQQLinear holds a parameter W_q, a layer of compressed-tensors weight_packed in its
    weight's place, those of GPTQ and AWQ a buffer qweight; scales lie beside.
    """
    held = {**dict(module.named_buffers(recurse=False)), **dict(module.named_parameters("", False))}
    weight = next((held[key] for key in ("W_q", "weight_packed", "qweight") if key in held), None)
    sides = (getattr(module, "out_features", None), getattr(module, "in_features", None))
    if weight is None or not all(isinstance(side, int) for side in sides):
        return {}
    bias = getattr(module, "bias", None)
    return {"weight": weight, **({"bias": bias} if isinstance(bias, torch.Tensor) else {})}


def _logical_shape(module: Any, kind: Kind, name: str, parameter: torch.Tensor) -> tuple[int, ...]:
    """Return a parameter's shape as the model uses it; quantised weights are stored packed."""
    if name == "weight" and kind == "linear":
        return module.out_features, module.in_features
    if name == "weight" and kind == "embedding":
        return module.num_embeddings, module.embedding_dim
    return tuple(parameter.shape)


def _made_weight(module: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of a weight that is made from other parameters; None where it is not.

    ``torch.nn.utils.parametrizations`` makes it in a submodule, the older
    ``torch.nn.utils.weight_norm`` in a hook, which leaves it a plain attribute.
    """
    if parametrize.is_parametrized(module, "weight") or "weight" in vars(module):
        with torch.no_grad():
            weight: Any = module.weight
        return tuple(weight.shape) if isinstance(weight, torch.Tensor) else None
    return None


def _name_of(model: nn.Module, getter: str) -> str:
    """Return the name of the module that ``getter`` gives; empty where there is none."""
    try:
        wanted: Any = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return ""
    return next((name for name, module in model.named_modules() if module is wanted), "")


def _main_dtype(model: nn.Module) -> str:
    counts: dict[str, int] = {}
    for parameter in model.parameters():
        name = str(parameter.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + parameter.numel()
    return max(counts, key=lambda name: counts[name]) if counts else "float32"
