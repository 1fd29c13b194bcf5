from __future__ import annotations

import pytest
from peft_models import FAMILIES, agree, agree_on, blueprint
from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaModel

from tunemath.errors import ModelError
from tunemath.space.peft import AdapterConfig, peft_change

# T5's and BERT's blocks lie where PEFT doesn't look for them.
HIDDEN = ("t5", "bert")
BLOCKS = {"target_modules": r".*\.(layers|h|layer)\.\d+"}

# Each case: its settings, the families for which PEFT refuses them.
CASES = {
    "default": ({}, HIDDEN),
    "named": ({**BLOCKS, "r": 3, "update_hidden_size": 5}, ()),
    "own-embeddings": ({"share_embeddings": False}, HIDDEN),
    "two-layers": ({"shadow_num_hidden_layers": 2, "init_weights": False}, HIDDEN),
    "one-block": ({"target_modules": ["layers.1", "h.1"]}, HIDDEN),
    "excluded": ({"exclude_modules": ["layers.0", "h.0"]}, HIDDEN),
    "lost-pattern": ({"layers_pattern": "layers"}, FAMILIES),
    "lost-layers": ({**BLOCKS, "layers_to_transform": [1]}, FAMILIES),
    "layers": ({"layers_to_transform": 1}, HIDDEN),
    "no-rank": ({"r": 0}, FAMILIES),
}

# Sizes of the network that aren't the model's, and the families that have no such size.
SIZES = {
    "three-layers": ({"shadow_num_hidden_layers": 3}, HIDDEN),
    "narrow": ({"shadow_hidden_size": 16}, HIDDEN),
    "feed-forward": ({"shadow_intermediate_size": 24}, (*HIDDEN, "whisper")),
    "heads": ({"shadow_num_attention_heads": 2}, HIDDEN),
    "all": (
        {"shadow_hidden_size": 16, "shadow_num_hidden_layers": 2, "shadow_num_attention_heads": 2},
        HIDDEN,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "SHADOW", values) == (family not in refused)


@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_may_have_sizes_of_its_own(family, case):
    values, refused = SIZES[case]
    assert agree(family, "SHADOW", values) == (family not in refused)


def test_a_bare_model_is_its_own_body_and_a_classifier_has_a_second_head():
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    assert agree_on(LlamaModel(config), "SHADOW", {"task_type": "FEATURE_EXTRACTION"})
    classifier = LlamaForSequenceClassification(config)
    assert agree_on(classifier, "SHADOW", {"task_type": "SEQ_CLS"})


def test_embeddings_that_are_kept_without_use_are_named():
    (note,) = peft_change(blueprint("gpt2"), AdapterConfig("SHADOW")).notes
    assert "own wte (2048 parameters)" in note
    assert not peft_change(blueprint("llama"), AdapterConfig("SHADOW")).notes


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("t5", {}, "finds no stack of blocks in this T5ForConditionalGeneration"),
        ("whisper", {"shadow_intermediate_size": 24}, "size is 24, for which PEFT sets interme"),
        ("llama", {"shadow_model": "some/model"}, "shadow_model is 'some/model'"),
        ("llama", {"shadow_hidden_size": -1}, "shadow_hidden_size is -1"),
    ],
)
def test_refusals_say_why(family, values, message):
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint(family), AdapterConfig("SHADOW", **values))
