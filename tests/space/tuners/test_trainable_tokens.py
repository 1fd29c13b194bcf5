from __future__ import annotations

import pytest
from peft_models import FAMILIES, agree, agree_on, base, blueprint
from transformers import BertForTokenClassification

from tunemath.errors import ModelError
from tunemath.space.peft import AdapterConfig, peft_change

SOME = {"token_indices": [3, 1, 40]}
HEADED = ("llama", "qwen2", "qwen3_moe", "gemma", "mixtral", "phi3", "gpt2", "t5")
EMBEDDED = ("llama", "qwen2", "qwen3_moe", "gemma", "mixtral", "phi3", "t5", "whisper")
HEADLESS = tuple(family for family in FAMILIES if family not in HEADED)

# Each case: its settings, the families for which PEFT refuses them. A ViT has no token embeddings.
CASES = {
    "default": ({}, ("vit",)),
    "some": (SOME, ("vit",)),
    "random": ({**SOME, "init_weights": False}, ("vit",)),
    "head": ({**SOME, "target_modules": ["lm_head"]}, HEADLESS),
    "both": (
        {**SOME, "target_modules": ["embed_tokens", "lm_head"]},
        ("bert", "vit"),
    ),
    "embed_tokens": (
        {**SOME, "target_modules": ["embed_tokens"]},
        tuple(family for family in FAMILIES if family not in EMBEDDED),
    ),
    "t5-shared": (
        {**SOME, "target_modules": ["shared", "embed_tokens"]},
        tuple(family for family in FAMILIES if family not in EMBEDDED),
    ),
    "pattern": (
        {**SOME, "target_modules": r".*\.(embed_tokens|wte|word_embeddings)"},
        ("vit",),
    ),
    "projections": ({**SOME, "token_indices": [2], "target_modules": "all-linear"}, ("gpt2",)),
    "outside": ({"token_indices": [64]}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "TRAINABLE_TOKENS", values) == (family not in refused)


@pytest.mark.parametrize("task", ["TOKEN_CLS", "QUESTION_ANS"])
def test_heads_that_cannot_be_trained_are_refused(task):
    model = BertForTokenClassification(base("bert").config)
    assert not agree_on(model, "TRAINABLE_TOKENS", {**SOME, "task_type": task})
    assert agree_on(model, "TRAINABLE_TOKENS", SOME)
    config = AdapterConfig("TRAINABLE_TOKENS", **SOME, task_type=task)
    with pytest.raises(ModelError, match=f"task_type {task}.* set task_type to None"):
        peft_change(blueprint("bert"), config)


def test_tied_targets_come_apart():
    both = AdapterConfig("TRAINABLE_TOKENS", **SOME, target_modules=["embed_tokens", "lm_head"])
    (note,) = peft_change(blueprint("qwen2"), both).notes
    assert note.startswith("model.embed_tokens and lm_head are tied")
    assert not peft_change(blueprint("llama"), both).notes
    assert not peft_change(blueprint("qwen2"), AdapterConfig("TRAINABLE_TOKENS", **SOME)).notes


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("llama", {"token_indices": [3, 64]}, "has 64 for model.embed_tokens; expected a list"),
        ("llama", {**SOME, "target_modules": ["norm"]}, "model.norm"),
        ("vit", SOME, "vit.embeddings.patch_embeddings"),
    ],
)
def test_refusals_say_why(family, values, message):
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint(family), AdapterConfig("TRAINABLE_TOKENS", **values))
