"""Tiny models of eleven families, and PEFT's own figures for them."""

from __future__ import annotations

import copy
import functools
import warnings

import peft
import pytest
import torch
import transformers as t

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, peft_change
from tunemath.space.peft.inference import for_inference

_DECODER = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_ENCODER = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}

# Each family: its configuration, the class, and the task of that class.
FAMILIES = {
    "llama": (lambda: t.LlamaConfig(**_DECODER), t.AutoModelForCausalLM, "CAUSAL_LM"),
    "qwen2": (
        lambda: t.Qwen2Config(**_DECODER, tie_word_embeddings=True),
        t.AutoModelForCausalLM,
        "CAUSAL_LM",
    ),
    "qwen3_moe": (
        lambda: t.Qwen3MoeConfig(**_DECODER, **_MOE, head_dim=16),
        t.AutoModelForCausalLM,
        "CAUSAL_LM",
    ),
    "gemma": (lambda: t.GemmaConfig(**_DECODER, head_dim=16), t.AutoModelForCausalLM, "CAUSAL_LM"),
    "mixtral": (
        lambda: t.MixtralConfig(**_DECODER, num_local_experts=4),
        t.AutoModelForCausalLM,
        "CAUSAL_LM",
    ),
    "phi3": (lambda: t.Phi3Config(**_DECODER), t.AutoModelForCausalLM, "CAUSAL_LM"),
    "gpt2": (
        lambda: t.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64),
        t.AutoModelForCausalLM,
        "CAUSAL_LM",
    ),
    "t5": (
        lambda: t.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4),
        t.AutoModelForSeq2SeqLM,
        "SEQ_2_SEQ_LM",
    ),
    "bert": (
        lambda: t.BertConfig(**_ENCODER, num_labels=3),
        t.AutoModelForSequenceClassification,
        "SEQ_CLS",
    ),
    "vit": (
        lambda: t.ViTConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            image_size=16, patch_size=8, num_labels=3,
        ),
        t.AutoModelForImageClassification,
        None,
    ),
    "whisper": (
        lambda: t.WhisperConfig(
            vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48,
            decoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=4,
            num_mel_bins=8, max_source_positions=32, max_target_positions=32, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        ),
        t.AutoModelForSpeechSeq2Seq,
        "SEQ_2_SEQ_LM",
    ),
}  # fmt: skip


@functools.cache
def base(family: str):
    """Return the family's tiny model; take a copy before changing it."""
    config, auto, _ = FAMILIES[family]
    torch.manual_seed(0)
    return auto.from_config(config())


@functools.cache
def blueprint(family: str):
    return blueprint_of(base(family))


def task_of(family: str) -> str | None:
    return FAMILIES[family][2]


def live_counts(family: str, config: peft.PeftConfig) -> tuple[int, int]:
    """Return PEFT's (trainable, total) for a configuration on the family's tiny model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(copy.deepcopy(base(family)), config)
    return model.get_nb_trainable_parameters()


# The families for which most tuner types have no default targets.
NO_DEFAULTS = ("qwen3_moe", "phi3", "vit", "whisper")


def agree(family: str, peft_type: str, values: dict) -> bool:
    """Hold our counts on a family's tiny model against PEFT's; False where both refuse."""
    return agree_on(base(family), peft_type, {"task_type": task_of(family), **values})


def agree_on(model: torch.nn.Module, peft_type: str, values: dict) -> bool:
    """Hold our counts on a model against PEFT's; False where both refuse."""
    config_class = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(peft_type)]
    ours, data = AdapterConfig(peft_type, **copy.deepcopy(values)), blueprint_of(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = config_class(**copy.deepcopy(values))
            live = peft.get_peft_model(copy.deepcopy(model), config).get_nb_trainable_parameters()
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        with pytest.raises(ModelError):
            peft_change(data, ours)
        return False
    change = peft_change(data, ours)
    ledger = Ledger(data, for_inference(ours, change) if ours.get("inference_mode") else change)
    assert (ledger.trainable, ledger.total) == live
    rows = ledger.by_module()
    assert sum(row["trainable"] for row in rows) == ledger.trainable
    assert sum(row["parameters"] for row in rows) == ledger.total
    return True
