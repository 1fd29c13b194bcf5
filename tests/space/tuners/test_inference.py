from __future__ import annotations

import pytest
from peft_models import agree, agree_on, base, blueprint
from torch import nn

from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, peft_change
from tunemath.space.peft.count import _TUNERS

ALL = {"target_modules": "all-linear"}
TOKENS = {"num_virtual_tokens": 4}

# What each type needs beside its defaults; XLORA, which needs files, has a test of its own.
SETTINGS = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 4},
    "CARTRIDGE": {**TOKENS, "num_frozen_tokens": 1},
    "CPT": {"cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
    "FROD": {"progressbar": False},
    "FOURIERFT": {"n_frequency": 9},
    "IA3": {"feedforward_modules": []},
    "MISS": {"r": 4},
    "MULTITASK_PROMPT_TUNING": {**TOKENS, "num_tasks": 2},
    "OFT": {"oft_block_size": 4},
    "OSF": {},
    "PREFIX_TUNING": {**TOKENS, "prefix_projection": True, "encoder_hidden_size": 6},
    "PROMPT_TUNING": TOKENS,
    "PSOFT": {"r": 4},
    "P_TUNING": {**TOKENS, "encoder_hidden_size": 6},
    "ROAD": {"group_size": 4},
    "SHADOW": {"r": 4},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2]},
    "VBLORA": {"num_vectors": 5, "vector_length": 4, "topk": 2},
    "WAVEFT": {"n_frequency": 9},
}
BY_NAMES = ("ADAPTION_PROMPT", "LN_TUNING", "SHADOW", "TRAINABLE_TOKENS")
NOT_COUNTED = ("ADAMSS", "XLORA")  # scikit-learn and files


def settings(peft_type: str) -> dict:
    fields = AdapterConfig(peft_type)
    targets = ALL if "target_modules" in fields and peft_type not in BY_NAMES else {}
    return {**targets, **SETTINGS.get(peft_type, {}), "inference_mode": True}


@pytest.fixture(autouse=True)
def extension(monkeypatch):
    """PEFT without its CUDA extension, which it would try to compile for every layer of BOFT."""
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: None)


@pytest.mark.parametrize("peft_type", [each for each in _TUNERS if each not in NOT_COUNTED])
def test_what_is_frozen_is_what_peft_freezes(peft_type):
    assert agree("llama", peft_type, settings(peft_type))


@pytest.mark.parametrize("family", ["qwen2", "bert", "t5", "whisper"])
@pytest.mark.parametrize(
    "values",
    [
        {"bias": "all"},
        {"bias": "lora_only", "use_dora": True},
        {"modules_to_save": ["norm", "0.mlp", "classifier"]},
        {"trainable_token_indices": [1, 2]},
        {"monteclora_config": {"num_samples": 2, "buffer_size": 2}},
        {"kasa_config": {}},
        {"init_lora_weights": "mica"},
    ],
)
def test_what_else_is_trained_is_frozen_too_but_biases(family, values):
    assert agree(family, "LORA", {**ALL, "inference_mode": True, **values})


def test_attention_and_experts_are_frozen():
    model = nn.Module()
    model.attend = nn.MultiheadAttention(8, 2)
    assert agree_on(model, "LORA", {"target_modules": ["attend"], "inference_mode": True})
    values = {"target_modules": [], "target_parameters": ["down_proj"], "inference_mode": True}
    assert agree("mixtral", "LORA", values)


@pytest.mark.parametrize("peft_type", ["PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"])
def test_a_prompt_that_starts_as_words_has_the_models_width(peft_type):
    start = {} if peft_type == "CPT" else {"prompt_tuning_init": "SAMPLE_VOCAB", "token_dim": 12}
    assert agree("llama", peft_type, {**settings(peft_type), **start})


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_heads_of_a_task_are_frozen(task):
    values = {"task_type": task, "inference_mode": True}
    assert agree_on(base("bert"), "LORA", {**values, "target_modules": ["query"]})
    assert agree_on(base("bert"), "PROMPT_TUNING", {**values, **TOKENS})


@pytest.mark.parametrize("peft_type", ["LORA", "PROMPT_TUNING"])
def test_a_saved_adapter_is_counted_as_it_trains(peft_type):
    model, values = blueprint("llama"), {**settings(peft_type), "task_type": "CAUSAL_LM"}
    saved = peft_change(model, AdapterConfig(peft_type, **values))
    trained = peft_change(model, AdapterConfig(peft_type, **{**values, "inference_mode": False}))
    assert Ledger(model, saved).trainable == Ledger(model, trained).trainable > 0


def test_the_note_has_what_would_be_frozen():
    model, query = blueprint("llama"), {"target_modules": ["q_proj"], "r": 2}
    (note,) = peft_change(model, AdapterConfig("LORA", **query, inference_mode=True)).notes
    assert note.endswith(f"PEFT freezes {2 * 2 * (32 + 32):,} of these parameters")
    prompt = AdapterConfig("PROMPT_TUNING", **TOKENS, task_type="CAUSAL_LM", inference_mode=True)
    (note,) = peft_change(model, prompt).notes
    assert note.endswith("PEFT freezes 0 of these parameters")
