"""Base models, and what is trained of them or beside them, in memory."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM

from tunemath.errors import ModelError
from tunemath.runner.adapters import BottleneckModel
from tunemath.runner.prefixes import attach_virtual_tokens, load_virtual_tokens
from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.resolve import ResolvedModel
from tunemath.runner.tuned import CONFIG, check_base
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
    read_space,
)
from tunemath.storage import read_json

__all__ = [
    "attach_adapter",
    "choose_device",
    "load_adapter",
    "load_base",
    "trainable_counts",
    "why_not_merged",
]


def choose_device(space: UpdateSpace | None = None) -> tuple[torch.device, torch.dtype]:
    """Return where and in what precision to run: bfloat16 on CUDA, float32 on a CPU.

    A model whose own weights are trained (``space``) is float32 everywhere: bfloat16 loses steps.
    """
    own = isinstance(space, UnfreezeSpace | LastLayersSpace)
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.float32 if own else torch.bfloat16
    return torch.device("cpu"), torch.float32


def load_base(model: ResolvedModel, device: torch.device, dtype: torch.dtype) -> Any:
    """Load the base in evaluation mode, from safetensors only."""
    try:
        with quiet_libraries():
            base: Any = AutoModelForCausalLM.from_pretrained(
                model.folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=model.trust_remote_code,
            )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot load {model.id} from {model.folder}: {reason}") from error
    return base.to(device=device).eval()


def attach_adapter(base: Any, space: UpdateSpace, seed: int) -> Any:
    """Return the base with what the contract trains, initialised from ``seed``.

    What is returned has ``disable_adapter()``, inside which it is the base, and
    ``get_base_model()``. Adapters and prefixes are float32; so is a model whose own weights are
    trained.
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
                reason = str(error).strip().splitlines()[0]
                raise ModelError(f"PEFT refuses {space.method} here: {reason}") from error
        _check_scale(wrapped, space)
        return wrapped
    if isinstance(space, PrefixSpace | PromptSpace):
        with quiet_libraries():
            return attach_virtual_tokens(base, space, seed)
    if isinstance(space, AdapterSpace):
        return BottleneckModel(base, space)
    return UnfrozenModel(base, space)


def load_adapter(base: Any, folder: Path) -> Any:
    """Return the base with a saved update, PEFT's or ours, for inference."""
    if (folder / CONFIG).is_file():
        check_base(base, folder)
        saved = read_json(folder / CONFIG)["space"]
        model: Any = attach_adapter(base, read_space(saved), seed=0)
        model.load(folder)
        return model.eval()
    with quiet_libraries():
        if PeftConfig.from_pretrained(str(folder)).is_prompt_learning:
            return load_virtual_tokens(base, folder)
        return PeftModel.from_pretrained(base, str(folder), local_files_only=True).eval()


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
