from __future__ import annotations

import copy
import warnings

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft_models import base, blueprint, task_of

from tunemath.space.peft import AdapterConfig, peft_change

N = {"num_virtual_tokens": 5}
TARGETS = {"target_modules": ["q_proj", "v_proj", "fc1"], "r": 3}
CASES = {
    "prompt": ("PROMPT_TUNING", N, "llama"),
    "multitask": ("MULTITASK_PROMPT_TUNING", {**N, "num_tasks": 2}, "t5"),
    "p-tuning": ("P_TUNING", N, "t5"),
    "p-tuning-lstm": ("P_TUNING", {**N, "encoder_reparameterization_type": "LSTM"}, "whisper"),
    "cpt": ("CPT", {"cpt_token_ids": [1, 2]}, "gpt2"),
    "prefix": ("PREFIX_TUNING", N, "gemma"),
    "prefix-projected": ("PREFIX_TUNING", {**N, "prefix_projection": True}, "phi3"),
    "cartridge": ("CARTRIDGE", N, "qwen3_moe"),
    "adaption-prompt": ("ADAPTION_PROMPT", {"adapter_len": 3, "adapter_layers": 1}, "gpt2"),
    "trainable-tokens": ("TRAINABLE_TOKENS", {"token_indices": [1, 2]}, "qwen2"),
    "shadow": ("SHADOW", {}, "llama"),
    "shadow-moe": ("SHADOW", {"share_embeddings": False}, "qwen3_moe"),
    "shadow-whole": ("SHADOW", {"target_modules": r".*block\.\d+"}, "t5"),
    "shadow-pooler": ("SHADOW", {}, "vit"),
    "supertuning": ("SUPERTUNING", {**TARGETS, "sparsity": 0.9}, "whisper"),
    "deft": ("DEFT", TARGETS, "whisper"),
    "lily": ("LILY", {**TARGETS, "stride_A": 2}, "whisper"),
    "peanut": ("PEANUT", {**TARGETS, "depth": 2}, "whisper"),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_are_the_live_models_trained_parameters_by_name_and_shape(case):
    peft_type, values, family = CASES[case]
    values = {**values, "task_type": task_of(family)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(peft_type)](**copy.deepcopy(values))
        live = peft.get_peft_model(copy.deepcopy(base(family)), config)
    shapes = {
        name.removeprefix("base_model.").removeprefix("model.").replace(".default", ""): p.shape
        for name, p in live.named_parameters()
        if p.requires_grad
    }
    change = peft_change(blueprint(family), AdapterConfig(peft_type, **values))
    named = [(m.name, part) for each in change.groups for m in each.modules for part in each.parts]
    named += [(each.name, part) for each in change.shared for part in each.parts]
    assert {f"{name}.{part.name}": part.shape for name, part in named if part.trainable} == shapes
