"""Base models, and what is trained of them or beside them, in memory."""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM

from tunemath.errors import ModelError
from tunemath.runner.adapters import BottleneckModel
from tunemath.runner.allocator import give_back_blocks
from tunemath.runner.launchers import refuse_several_processes
from tunemath.runner.loading import loading_errors, one_line, read_model, read_tensors
from tunemath.runner.origins import refuse_other_base
from tunemath.runner.prefixes import attach_virtual_tokens, load_virtual_tokens
from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.resolve import ResolvedModel
from tunemath.runner.tuned import CONFIG, space_of
from tunemath.runner.unfrozen import UnfrozenModel
from tunemath.space import (
    AdapterSpace,
    LastLayersSpace,
    LoraSpace,
    PrefixSpace,
    PromptSpace,
    UnfreezeSpace,
    UpdateSpace,
    peft_settings,
)
from tunemath.space.peft.expressions import hold_expressions
from tunemath.storage import read_json

__all__ = [
    "attach_adapter",
    "choose_device",
    "load_adapter",
    "load_base",
    "load_trained",
    "peft_config",
    "trainable_counts",
    "why_not_merged",
]


_PEFT_CONFIG, _PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# PEFT's adapters that a model reads once, as embeddings or as keys and values before its input.
_VIRTUAL = (PeftType.PREFIX_TUNING, PeftType.PROMPT_TUNING, PeftType.P_TUNING, PeftType.CPT)


def choose_device(space: UpdateSpace | None = None) -> tuple[torch.device, torch.dtype]:
    """Return where and in what precision to run: bfloat16 on the first GPU, float32 on a CPU.

    A model whose own weights are trained (``space``) is float32 everywhere: bfloat16 loses steps.
    """
    refuse_several_processes()
    own = isinstance(space, UnfreezeSpace | LastLayersSpace)
    if torch.cuda.is_available():
        _tell_of_others(torch.cuda.device_count())
        return torch.device("cuda", 0), torch.float32 if own else torch.bfloat16
    give_back_blocks()
    return torch.device("cpu"), torch.float32


@cache
def _tell_of_others(devices: int) -> None:
    """Say once that of several GPUs one is used, and how to choose it."""
    if devices > 1:
        logging.getLogger("tunemath").warning(
            "%d GPUs are here; this run uses one, cuda:0 (%s); CUDA_VISIBLE_DEVICES chooses which, "
            "as in CUDA_VISIBLE_DEVICES=1",
            devices,
            torch.cuda.get_device_name("cuda:0"),
        )


def load_base(model: ResolvedModel, device: torch.device, dtype: torch.dtype) -> Any:
    """Load the base in evaluation mode, from safetensors only."""
    base = read_model(
        AutoModelForCausalLM,
        model.folder,
        model.id,
        dtype=dtype,
        trust_remote_code=model.trust_remote_code,
    )
    return base.to(device=device).eval()


def attach_adapter(base: Any, space: UpdateSpace, seed: int) -> Any:
    """Return the base with what the contract trains, initialised from ``seed``.

    What is returned has ``disable_adapter()``, inside which it is the base, and
    ``get_base_model()``. Adapters and prefixes are float32; so is a model whose own weights are
    trained, which is the base again only after its ``keep_base()``.
    """
    torch.manual_seed(seed)
    if isinstance(space, LoraSpace):
        _, values = peft_settings(space)
        with quiet_libraries():
            # PEFT adds patterns for fused experts to every mixture, and then says they met none.
            warnings.filterwarnings("ignore", "The following .* keys did not match", RuntimeWarning)
            try:
                wrapped = get_peft_model(base, LoraConfig(**values))
            except ValueError as error:
                raise ModelError(f"PEFT refuses {space.method} here: {one_line(error)}") from error
        _check_scale(wrapped, space)
        return wrapped
    if isinstance(space, PrefixSpace | PromptSpace):
        with quiet_libraries():
            return attach_virtual_tokens(base, space, seed)
    if isinstance(space, AdapterSpace):
        return BottleneckModel(base, space)
    return UnfrozenModel(base, space)


def load_adapter(base: Any, folder: Path) -> Any:
    """Return the base with a saved update, PEFT's or ours, for inference.

    Raises `ModelError` where the folder is no whole update of this base, or one that can't be run
    here; the message names the file and what to do.
    """
    ours, theirs = (folder / CONFIG).is_file(), (folder / _PEFT_CONFIG).is_file()
    if ours and theirs:
        raise ModelError(
            f"{folder} holds two updates, by {CONFIG} and by {_PEFT_CONFIG}; delete the files of "
            "the one that was left over"
        )
    if ours or theirs:
        refuse_other_base(folder, Path(getattr(base, "name_or_path", "") or "."))
    if theirs:
        return _load_peft(base, folder)
    if not ours:
        raise ModelError(
            f"{folder} holds no saved update, neither {CONFIG} nor {_PEFT_CONFIG}; give the folder "
            "that was saved, whole, or train again"
        )
    model: Any = attach_adapter(base, space_of(folder), seed=0)
    if isinstance(model, UnfrozenModel):
        model.keep_base()
    model.load(folder)
    return model.eval()


def load_trained(
    model: ResolvedModel, update: Path, device: torch.device, dtype: torch.dtype
) -> Any:
    """Return the tuned model for inference: the base with a saved update, or a whole tuned model.

    A model that was trained in full is saved whole, so it is loaded alone, and has no base inside.
    """
    if (update / CONFIG).is_file() and space_of(update).method == "full":
        refuse_other_base(update, model.folder)
        return load_base(replace(model, id=str(update), folder=update), device, dtype)
    return load_adapter(load_base(model, device, dtype), update)


def _load_peft(base: Any, folder: Path) -> Any:
    """Return the base with an adapter that PEFT saved, from safetensors only."""
    config = peft_config(folder)
    weights = folder / _PEFT_WEIGHTS
    pickled = weights.with_suffix(".bin")
    if pickled.is_file() and not weights.is_file():
        raise ModelError(
            f"{pickled} is pickle, which can run any code when it is read, so it is refused; load "
            "it with PEFT if you trust it, and save it again with save_pretrained"
        )
    tensors = read_tensors(weights)
    if config.peft_type in _VIRTUAL:
        with quiet_libraries():
            return load_virtual_tokens(base, config, tensors, folder)
    if config.is_prompt_learning:
        raise ModelError(
            f"{folder} holds a {PeftType(config.peft_type).value} adapter, which is counted but "
            "not run here; load it with peft.PeftModel.from_pretrained"
        )
    names = [name for name, _ in base.named_modules()]
    hold_expressions(config.to_dict(), names)
    with loading_errors(f"PEFT cannot load the adapter in {folder}"):
        warnings.filterwarnings("error", "Found missing adapter keys", UserWarning)
        try:
            return PeftModel.from_pretrained(base, str(folder), local_files_only=True).eval()
        except UserWarning as lacking:
            raise ModelError(
                f"{weights} does not hold all that {_PEFT_CONFIG} describes on this base "
                f"({one_line(lacking)}); it is of another model, or not whole: copy it again"
            ) from None


def peft_config(folder: Path) -> Any:
    """Return the configuration of an adapter that PEFT saved."""
    path = folder / _PEFT_CONFIG
    values = read_json(path)
    kind = values.get("peft_type") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in PeftType.__members__:
        raise ModelError(
            f"{path} has {kind!r:.60} as peft_type, which PEFT {peft.__version__} does not have; "
            "copy it again, or install the PEFT that saved it"
        )
    with loading_errors(f"{path} cannot be read; copy it again"):
        return PeftConfig.from_pretrained(str(folder))


def why_not_merged(space: UpdateSpace) -> str | None:
    """Return why a method's update can't become part of the base's weights; None where it can."""
    if isinstance(space, AdapterSpace):
        return "an adapter has a non-linearity inside, so it is no change of a weight"
    if isinstance(space, PrefixSpace | PromptSpace):
        return f"a {space.method} stands before the input and changes no weight"
    return None


def trainable_counts(model: Any) -> dict[str, int]:
    """Count trainable parameters by a plain sum over tensors, and by PEFT's own figure if any."""
    live = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not isinstance(model, PeftModel):
        return {"live": live, "total": sum(p.numel() for p in model.parameters())}
    peft_trainable, peft_total = model.get_nb_trainable_parameters()
    return {"live": live, "peft": peft_trainable, "total_peft": peft_total}


def _check_scale(model: nn.Module, space: LoraSpace) -> None:
    """Hold PEFT's scaling against ΔW = s·B A with the contract's s."""
    for name, module in model.named_modules():
        for scale in module.scaling.values() if isinstance(module, LoraLayer) else ():
            if not math.isclose(scale, space.scale, rel_tol=1e-9):
                raise ModelError(f"{name} scales its update by {scale}; contract: {space.scale}")
