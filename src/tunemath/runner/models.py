"""Base models and adapters in memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM

from tunemath.errors import ModelError
from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.resolve import ResolvedModel
from tunemath.space.record import UpdateSpace

__all__ = ["attach_adapter", "choose_device", "load_adapter", "load_base", "trainable_counts"]


def choose_device() -> tuple[torch.device, torch.dtype]:
    """Return where and in what precision to run: bfloat16 on CUDA, float32 on a CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.bfloat16
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


def attach_adapter(base: Any, space: UpdateSpace, seed: int) -> PeftModel:
    """Wrap the base with a fresh adapter, initialised from ``seed``; adapters are float32."""
    torch.manual_seed(seed)
    targets = space.targets if isinstance(space.targets, str) else list(space.targets)
    config = LoraConfig(
        r=space.rank,
        lora_alpha=int(space.alpha) if space.alpha.is_integer() else space.alpha,  # pyright: ignore
        lora_dropout=space.dropout,
        use_rslora=space.rslora,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with quiet_libraries():
        wrapped = get_peft_model(base, config)
    _check_scale(wrapped, space)
    return wrapped  # pyright: ignore[reportReturnType]


def load_adapter(base: Any, folder: Path) -> PeftModel:
    """Wrap the base with a saved adapter, for inference."""
    with quiet_libraries():
        return PeftModel.from_pretrained(base, str(folder), local_files_only=True).eval()


def trainable_counts(model: nn.Module) -> dict[str, int]:
    """Count trainable parameters twice: PEFT's own figure, and a plain sum over tensors."""
    peft_trainable, peft_total = model.get_nb_trainable_parameters()  # pyright: ignore
    live = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"live": live, "peft": peft_trainable, "total_peft": peft_total}


def _check_scale(model: nn.Module, space: UpdateSpace) -> None:
    """Hold PEFT's scaling against ΔW = s·B A with the contract's s."""
    for name, module in model.named_modules():
        for scale in module.scaling.values() if isinstance(module, LoraLayer) else ():
            if not math.isclose(scale, space.scale, rel_tol=1e-9):
                raise ModelError(f"{name} scales its update by {scale}; contract: {space.scale}")
