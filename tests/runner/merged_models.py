"""Bases and adapters on disk, small enough that every merged tensor is held against PEFT's."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from small_models import PAD, SMALL, VOCAB
from transformers import AutoModelForCausalLM

from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.resolve import ResolvedModel

IDS = torch.arange(3, 40)[None] % VOCAB
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"attention_bias": True}),
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
}


def save_base(folder: Path, kind: str = "llama", dtype=torch.float32, **options: Any) -> Any:
    """Write a seeded model; the biases that it has are not 0."""
    name, extra = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL | {"pad_token_id": PAD} | extra)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    with quiet_libraries():
        model.save_pretrained(folder, **options)
    return model


def save_adapter(folder: Path, base: Path, peft_type: str = "LORA", std=0.1, **options: Any) -> Any:
    """Write an adapter all of whose trained numbers moved."""
    config_class = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(peft_type)]
    if peft_type != "PROMPT_TUNING":
        options = {"target_modules": ["q_proj", "down_proj"]} | options
    options = {"task_type": "CAUSAL_LM"} | options
    torch.manual_seed(1)
    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(load(base), config_class(**copy.deepcopy(options)))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += std * torch.randn_like(parameter)
        model.save_pretrained(folder)
    return model.eval()


def load(folder: Path, dtype=torch.float32) -> Any:
    with quiet_libraries():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def live(base: Path, adapter: Path) -> Any:
    """Base and adapter side by side in float32, as PEFT runs them."""
    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(load(base), str(adapter)).eval()


def resolved(folder: Path) -> ResolvedModel:
    return ResolvedModel(folder.name, folder, None, None, False)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS).logits
