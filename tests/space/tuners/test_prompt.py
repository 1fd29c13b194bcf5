from __future__ import annotations

import pytest
from peft_models import FAMILIES, agree, agree_on, blueprint
from transformers import LlamaConfig, LlamaForSequenceClassification

from tunemath.errors import ModelError
from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, peft_change

N = {"num_virtual_tokens": 5}
PROMPT = ("PROMPT_TUNING", N)
SOURCE = {**N, "prompt_tuning_init": "AVERAGE_SOURCE_TASKS"}
WORDS = {**N, "prompt_tuning_init": "SAMPLE_VOCAB"}
SETTINGS = {"token_dim": 16, "num_layers": 3, "num_attention_heads": 2}
LSTM = {**N, "encoder_reparameterization_type": "LSTM", "encoder_dropout": 0.1}
CONTEXT = {"cpt_token_ids": [3, 5, 7, 9], "cpt_mask": [1] * 4}
NO_CAUSAL_LM = ("t5", "bert", "vit", "whisper")

# Each case: its type and settings, the families for which PEFT refuses them. A ViT has no words.
CASES = {
    "prompt": (*PROMPT, ("vit",)),
    "prompt-no-tokens": ("PROMPT_TUNING", {}, FAMILIES),
    "prompt-sizes": ("PROMPT_TUNING", {**N, **SETTINGS}, ("vit",)),
    "prompt-submodules": ("PROMPT_TUNING", {**N, "num_transformer_submodules": 3}, ("vit",)),
    "prompt-words": ("PROMPT_TUNING", {**WORDS, "token_dim": 16}, ("vit",)),
    "prompt-text": ("PROMPT_TUNING", {**N, "prompt_tuning_init": "TEXT"}, FAMILIES),
    "prompt-saved": ("PROMPT_TUNING", {**N, "modules_to_save": ["lm_head"]}, ("vit",)),
    "multitask": ("MULTITASK_PROMPT_TUNING", N, ("vit",)),
    "multitask-tasks": (
        "MULTITASK_PROMPT_TUNING",
        {**N, "num_tasks": 4, "num_ranks": 3, "token_dim": 16},
        ("vit",),
    ),
    "multitask-source": ("MULTITASK_PROMPT_TUNING", SOURCE, FAMILIES),
    "p-tuning": ("P_TUNING", N, ("vit",)),
    "p-tuning-hidden": (
        "P_TUNING",
        {**N, "encoder_hidden_size": 24, "encoder_num_layers": 4, "token_dim": 16},
        ("vit",),
    ),
    "p-tuning-lstm": ("P_TUNING", {**LSTM, "encoder_hidden_size": 24}, ("vit",)),
    "p-tuning-lstm-deep": ("P_TUNING", {**LSTM, "encoder_num_layers": 3}, ("vit",)),
    "p-tuning-unknown": ("P_TUNING", {**N, "encoder_reparameterization_type": "GRU"}, FAMILIES),
    "cpt": ("CPT", {}, NO_CAUSAL_LM),
    "cpt-context": ("CPT", {**CONTEXT, **N, **SETTINGS}, NO_CAUSAL_LM),
    "cpt-types": ("CPT", {**CONTEXT, "cpt_tokens_type_mask": [1, 2, 3, 4]}, NO_CAUSAL_LM),
    "cpt-lengths": ("CPT", {**CONTEXT, "cpt_tokens_type_mask": [1]}, FAMILIES),
    "cpt-outside": ("CPT", {"cpt_token_ids": [64]}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    peft_type, values, refused = CASES[case]
    assert agree(family, peft_type, values) == (family not in refused)


@pytest.mark.parametrize("task", ["CAUSAL_LM", "FEATURE_EXTRACTION", "SEQ_2_SEQ_LM"])
@pytest.mark.parametrize("peft_type", ["PROMPT_TUNING", "P_TUNING"])
def test_sequence_to_sequence_tasks_have_two_prompts(peft_type, task):
    assert agree("t5", peft_type, {**N, "task_type": task})


def test_the_task_must_be_said():
    assert not agree("llama", "PROMPT_TUNING", {**N, "task_type": None})
    with pytest.raises(ModelError, match="task_type is None; set it to one of CAUSAL_LM"):
        peft_change(blueprint("llama"), AdapterConfig("PROMPT_TUNING", **N))


@pytest.mark.parametrize("saved", [None, ["word_embeddings"], ["query"]])
def test_saved_word_embeddings_are_copied_twice_beside_a_head(saved):
    assert agree("bert", "PROMPT_TUNING", {**N, "modules_to_save": saved})
    config = AdapterConfig("PROMPT_TUNING", **N, task_type="SEQ_CLS", modules_to_save=saved)
    notes = peft_change(blueprint("bert"), config).notes
    assert any("2048 parameters" in note for note in notes) == (saved == ["word_embeddings"])


def test_a_decoder_that_classifies_has_its_head_trained():
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    for peft_type in ("PROMPT_TUNING", "P_TUNING"):
        assert agree_on(model, peft_type, {**N, "task_type": "SEQ_CLS"})


def test_tokens_without_gradient_are_named():
    values = {**CONTEXT, "cpt_tokens_type_mask": [1, 4, 0, 2]}
    (note,) = peft_change(
        blueprint("llama"), AdapterConfig("CPT", task_type="CAUSAL_LM", **values)
    ).notes
    assert f"PEFT counts {2 * 32} parameters" in note


@pytest.mark.parametrize(
    ("peft_type", "values", "trainable"),
    [
        # Lester et al. 2021, figure 2: "20,480 parameters per task", of 5 tokens for T5 XXL, which
        # is 4,096 wide.
        ("PROMPT_TUNING", {"num_virtual_tokens": 5, "token_dim": 4096}, 20_480),
        # Wang et al. 2023, table 1: 77.6K, of 100 tokens for T5 base, 768 wide, and one task: the
        # abstract's 0.035 % of 222.9M.
        ("MULTITASK_PROMPT_TUNING", {"num_virtual_tokens": 100, "token_dim": 768}, 77_668),
    ],
)
def test_counts_are_those_of_the_papers(peft_type, values, trainable):
    values = {**values, "task_type": "SEQ_2_SEQ_LM", "num_transformer_submodules": 1}
    change = peft_change(blueprint("t5"), AdapterConfig(peft_type, **values))
    assert Ledger(blueprint("t5"), change).trainable == trainable


@pytest.mark.parametrize(
    ("peft_type", "values", "message"),
    [
        ("PROMPT_TUNING", {}, "num_virtual_tokens is None; set it to a whole number of 1 or more"),
        (
            "PROMPT_TUNING",
            {**N, "prompt_tuning_init": "TEXT"},
            "tokenizer_name_or_path is None, and prompt_tuning_init TEXT needs it",
        ),
        ("CPT", {"cpt_token_ids": [3, 64]}, r"has \[64\]; the model's tokens are 0 to 63"),
        ("CPT", {**CONTEXT, "cpt_mask": [1]}, "cpt_mask has 1 entries for 4 cpt_token_ids"),
    ],
)
def test_refusals_say_what_to_do(peft_type, values, message):
    config = AdapterConfig(peft_type, task_type="CAUSAL_LM", **values)
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint("llama"), config)


def test_a_model_of_no_language_is_refused():
    config = AdapterConfig("PROMPT_TUNING", **N, task_type="FEATURE_EXTRACTION")
    with pytest.raises(ModelError, match="this vit has no vocab_size"):
        peft_change(blueprint("vit"), config)
    assert not agree("vit", "PROMPT_TUNING", {**N, "task_type": "FEATURE_EXTRACTION"})
