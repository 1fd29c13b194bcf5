from __future__ import annotations

import sys

import pytest
from config_models import FAMILIES, assert_equal, live, values_of

from processes import output_of
from tunemath.errors import ModelError
from tunemath.space.blueprint.config import blueprint_of_config


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ({"model_type": "llama", "num_key_value_heads": 8}, (32, 32, 8, 128)),
        ({"model_type": "bart"}, (24, 16, 16, 64)),
        ({"model_type": "bart", "architectures": ["BartForCausalLM"]}, (12, 16, 16, 64)),
        ({"model_type": "t5", "num_decoder_layers": 2}, (8, 8, 8, 64)),
        ({"model_type": "t5", "architectures": ["T5EncoderModel"]}, (6, 8, 8, 64)),
        ({"model_type": "falcon"}, (32, 71, 1, 64)),
        ({"model_type": "falcon", "multi_query": False}, (32, 71, 71, 64)),
        ({"model_type": "gpt_bigcode"}, (12, 12, 1, 64)),
        ({"model_type": "gemma3"}, (26, 8, 4, 256)),
    ],
)
def test_layers_and_heads_follow_from_the_configuration(config, sizes):
    """By hand, from transformers' defaults of each family."""
    found = blueprint_of_config(config)
    assert found is not None
    assert (found.layers, found.heads, found.kv_heads, found.head_dim) == sizes


def test_the_task_chooses_the_class_before_the_saved_one():
    values = values_of("bert", "BertForMaskedLM")
    classes = {
        "SEQ_CLS": "BertForSequenceClassification",
        "TOKEN_CLS": "BertForTokenClassification",
        "QUESTION_ANS": "BertForQuestionAnswering",
        "FEATURE_EXTRACTION": "BertModel",
        "CAUSAL_LM": "BertLMHeadModel",
        None: "BertForMaskedLM",
    }
    for task, architecture in classes.items():
        assert_equal(blueprint_of_config(values, task_type=task), live(values, architecture))
    whisper = blueprint_of_config({"model_type": "whisper"}, task_type="SEQ_2_SEQ_LM")
    assert whisper is not None
    assert whisper.architecture == "WhisperForConditionalGeneration"
    vit = blueprint_of_config({"model_type": "vit"}, task_type="SEQ_CLS")
    assert vit is not None
    assert vit.architecture == "ViTForImageClassification"


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        ("llama", "LlamaForCausalLM"),
        ("t5", "T5ForConditionalGeneration"),
        ("bart", "BartForConditionalGeneration"),
        ("vit", "ViTModel"),
        ("deberta", "DebertaModel"),
    ],
)
def test_a_configuration_without_a_class_is_a_language_model_or_the_base(model_type, architecture):
    blueprint = blueprint_of_config({"model_type": model_type})
    assert blueprint is not None
    assert blueprint.architecture == architecture


def test_what_is_not_described_here_is_left_to_others():
    assert blueprint_of_config({"model_type": "mamba"}) is None
    assert blueprint_of_config({"hidden_size": 8}) is None
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLMEagle3"]}
    assert blueprint_of_config(llama) is None
    assert blueprint_of_config({"model_type": "llama", "per_layer_config": {"0": {}}}) is None
    seeing = {"model_type": "gemma3", "vision_config": {"model_type": "clip_vision_model"}}
    assert blueprint_of_config(seeing) is None


def test_a_field_counts_by_whichever_name_it_has():
    # GPT-2's own names, the common ones, and both, where the common one is read last.
    for more in ({"n_embd": 16}, {"hidden_size": 16}, {"hidden_size": 16, "n_embd": 8}):
        values = {**FAMILIES["gpt2"][0], **more, "model_type": "gpt2"}
        assert_equal(blueprint_of_config(values), live(values, "GPT2LMHeadModel"))
    # What transformers 4 called num_experts, transformers 5 saves as num_local_experts.
    for more in ({"num_experts": 3}, {"num_local_experts": 5}):
        values = {**FAMILIES["qwen3_moe"][0], **more, "model_type": "qwen3_moe"}
        assert_equal(blueprint_of_config(values), live(values, "Qwen3MoeForCausalLM"))
        values.pop("num_experts")
        assert_equal(blueprint_of_config(values), live(values, "Qwen3MoeForCausalLM"))


def test_configurations_of_transformers_4_are_read():
    llama = {
        "model_type": "llama",
        "architectures": ["LLaMAForCausalLM"],
        "torch_dtype": "bfloat16",
        "rope_theta": 500000.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "transformers_version": "4.28.0",
        "max_sequence_length": 2048,
        **FAMILIES["llama"][0],
    }
    blueprint = blueprint_of_config(llama)
    assert blueprint is not None
    assert (blueprint.architecture, blueprint.dtype) == ("LlamaForCausalLM", "bfloat16")
    assert blueprint.modules == live(llama, "LlamaForCausalLM").modules


MALFORMED = [
    ({"hidden_size": "64"}, r"has '64' as hidden_size; expected a whole number of at least 1"),
    ({"hidden_size": -64}, r"has -64 as hidden_size; expected"),
    ({"hidden_size": None}, r"has None as hidden_size; expected"),
    ({"hidden_size": 64.0}, r"has 64.0 as hidden_size; expected"),
    ({"vocab_size": True}, r"has True as vocab_size; expected"),
    ({"num_attention_heads": 6}, r"hidden_size 32, which num_attention_heads 6 does not divide"),
    ({"num_key_value_heads": 3}, r"num_attention_heads 4, which num_key_value_heads 3 does not"),
    ({"num_hidden_layers": 10**9}, r"num_hidden_layers; expected at most 10000"),
    ({"num_hidden_layers": 0}, r"has 0 as num_hidden_layers; expected"),
    ({"mlp_bias": "yes"}, r"has 'yes' as mlp_bias; expected true or false"),
    ({"architectures": "Llama"}, r"has 'Llama' as architectures; expected the name of one class"),
    ({"architectures": [3]}, r"has \[3\] as architectures; expected"),
    ({"model_type": ["llama"]}, r"has \['llama'\] as model_type; expected a string"),
]


@pytest.mark.parametrize(("more", "message"), MALFORMED)
def test_a_field_that_cannot_be_is_named(more, message):
    with pytest.raises(ModelError, match=message):
        blueprint_of_config({"model_type": "llama", **FAMILIES["llama"][0], **more})


def test_labels_parts_and_lists_that_cannot_be_are_named():
    bert = {"model_type": "bert", **FAMILIES["bert"][0]}
    with pytest.raises(ModelError, match=r"\['a'\] as id2label; expected a name for each class"):
        blueprint_of_config({**bert, "id2label": ["a"]}, task_type="SEQ_CLS")
    with pytest.raises(ModelError, match=r"-1 as num_labels; expected a whole number of at least"):
        blueprint_of_config({**bert, "num_labels": -1}, task_type="SEQ_CLS")
    with pytest.raises(ModelError, match="'small' as text_config; expected a configuration of its"):
        blueprint_of_config({"model_type": "clip", "text_config": "small"})
    with pytest.raises(
        ModelError, match=r"0 as vision_config\.patch_size; expected a whole number"
    ):
        blueprint_of_config({"model_type": "clip", "vision_config": {"patch_size": 0}})
    with pytest.raises(ModelError, match="3 as mlp_only_layers; expected a list of whole numbers"):
        blueprint_of_config({"model_type": "qwen3_moe", "mlp_only_layers": 3})
    with pytest.raises(ModelError, match=r"\[8\] as patch_size; expected a height and a width"):
        blueprint_of_config({"model_type": "vit", "patch_size": [8]})
    with pytest.raises(ModelError, match="'gelu-new' as feed_forward_proj; expected an activation"):
        blueprint_of_config({"model_type": "t5", "feed_forward_proj": "gelu-new"})


def test_a_task_that_a_family_does_not_have_is_an_error():
    with pytest.raises(ModelError, match="task_type 'CLM' is none of PEFT's; known: CAUSAL_LM, "):
        blueprint_of_config({"model_type": "llama"}, task_type="CLM")
    with pytest.raises(ModelError, match="SEQ_CLS, for which transformers has no granite model"):
        blueprint_of_config({"model_type": "granite"}, task_type="SEQ_CLS")


def test_torch_is_not_imported():
    code = (
        "import sys\n"
        "from tunemath.space.blueprint.config import blueprint_of_config\n"
        "assert blueprint_of_config({'model_type': 'llama'}).parameters == 6738415616\n"
        "print(*{'torch', 'transformers', 'peft', 'numpy'} & sys.modules.keys())\n"
    )
    loaded = output_of([sys.executable, "-c", code])
    assert "torch" not in loaded
    assert "transformers" not in loaded
