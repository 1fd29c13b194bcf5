from __future__ import annotations

import pytest
import transformers
from config_models import CLASSES, FAMILIES, assert_equal, live, values_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunemath.space.blueprint.config import blueprint_of_config


def main_class(model_type: str) -> str:
    """Return the class that has the most of a family: a language model's where there is one."""
    wanted = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM", "Model")
    found = (c for end in wanted for c in CLASSES[model_type] if c.endswith(end))
    return next(found)


def test_every_family_is_tried():
    assert FAMILIES.keys() == CLASSES.keys()


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [(model_type, each) for model_type in FAMILIES for each in CLASSES[model_type]],
)
def test_a_configuration_gives_the_live_model(model_type, architecture):
    values = values_of(model_type, architecture)
    assert_equal(blueprint_of_config(values), live(values, architecture))


@pytest.mark.parametrize(
    ("model_type", "more"),
    [
        pytest.param(model_type, more, id=f"{model_type}-{place}")
        for model_type, (_, variants) in FAMILIES.items()
        for place, more in enumerate(variants)
    ],
)
def test_variants_give_the_live_model(model_type, more):
    architecture = main_class(model_type)
    values = values_of(model_type, architecture, **more)
    assert_equal(blueprint_of_config(values), live(values, architecture))


@pytest.mark.parametrize(
    ("model_type", "architecture", "more"),
    [
        ("albert", "AlbertModel", {"num_hidden_groups": 2, "inner_group_num": 2}),
        ("bart", "BartForConditionalGeneration", {"tie_word_embeddings": False}),
        ("bart", "BartForSequenceClassification", {"id2label": None}),
        ("clip", "CLIPForImageClassification", {"id2label": {}}),
        ("electra", "ElectraForMultipleChoice", {"summary_use_proj": False}),
        ("electra", "ElectraForMultipleChoice", {"summary_proj_to_labels": False}),
        ("gpt2", "GPT2DoubleHeadsModel", {"summary_proj_to_labels": False}),
        ("gpt2", "GPT2DoubleHeadsModel", {"summary_use_proj": False}),
        ("modernbert", "ModernBertForMaskedLM", {"decoder_bias": False, "mlp_bias": True}),
        ("vit", "ViTForImageClassification", {"id2label": None, "num_labels": 5}),
        ("vit", "ViTForImageClassification", {"patch_size": [4, 8], "image_size": [16, 32]}),
        ("whisper", "WhisperForAudioClassification", {"use_weighted_layer_sum": True}),
    ],
)
def test_variants_of_heads_give_the_live_model(model_type, architecture, more):
    values = values_of(model_type, architecture, **more)
    values = {key: value for key, value in values.items() if value is not None}
    assert_equal(blueprint_of_config(values), live(values, architecture))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_fields_that_are_left_out_are_transformers_defaults(model_type):
    architecture = main_class(model_type)
    short = dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 1)
    fields_of = transformers.CONFIG_MAPPING[model_type]().to_dict()
    values = {key: value for key, value in short.items() if key in fields_of}
    values |= {"model_type": model_type, "architectures": [architecture]}
    # Of these, some defaults do not go together.
    values |= {
        "gpt_neo": {"attention_types": [[["global"], 1]]},
        "glm4_moe": {"head_dim": 128},
        "nemotron": {"num_key_value_heads": 8},
    }.get(model_type, {})
    assert_equal(blueprint_of_config(values), live(values, architecture))


DENSE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi", "phi3", "olmo2", "granite",
         "starcoder2", "stablelm", "cohere", "glm4", "smollm3")  # fmt: skip
MIXED = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe", "phimoe")


@st.composite
def decoders(draw: st.DrawFn) -> dict[str, object]:
    """A decoder of any of these families, of any sizes that go together."""
    kv, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    width = draw(st.integers(1, 4)) * 2
    flags = ("attention_bias", "mlp_bias", "use_bias", "use_qkv_bias", "qkv_bias", "qk_layernorm",
             "use_qk_norm", "tie_word_embeddings", "lm_head_bias")  # fmt: skip
    sizes = ("vocab_size", "intermediate_size", "moe_intermediate_size",
             "shared_expert_intermediate_size", "num_local_experts", "num_experts")  # fmt: skip
    model_type = draw(st.sampled_from(DENSE + MIXED))
    values = {
        "model_type": model_type,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": kv * groups,
        "num_key_value_heads": kv,
        "hidden_size": kv * groups * width,
        "pad_token_id": 0,
        "decoder_sparse_step": draw(st.integers(1, 2)),
        "num_experts_per_tok": 1,
        **{key: draw(st.integers(3, 40)) for key in sizes},
    }
    # Phi-3 shares out its rotary positions by the hidden size alone.
    if model_type != "phi3" and draw(st.booleans()):
        values["head_dim"] = 2 * draw(st.integers(1, 5))
    own = transformers.CONFIG_MAPPING[model_type]().to_dict()
    return {**values, **{flag: draw(st.booleans()) for flag in flags if flag in own}}


@settings(
    max_examples=60, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
@given(decoders())
def test_any_sizes_give_the_live_model(values):
    architecture = main_class(values["model_type"])
    values["architectures"] = [architecture]
    assert_equal(blueprint_of_config(values), live(values, architecture))


# The parameters that the Hub shows for the published weights, of which safetensors' metadata are
# the source; fields that the published config.json has and that differ from the defaults.
PUBLISHED = {
    "openai-community/gpt2": (124_439_808, {"model_type": "gpt2"}),
    "google-bert/bert-base-uncased": (
        109_482_240,
        {"model_type": "bert", "architectures": ["BertModel"]},
    ),
    "meta-llama/Llama-3.1-405B": (
        405_853_388_800,
        {"model_type": "llama", "hidden_size": 16384, "intermediate_size": 53248}
        | {"num_hidden_layers": 126, "num_attention_heads": 128, "num_key_value_heads": 8}
        | {"vocab_size": 128256},
    ),
    "meta-llama/Llama-3.1-8B": (
        8_030_261_248,
        {"model_type": "llama", "intermediate_size": 14336, "num_key_value_heads": 8}
        | {"vocab_size": 128256},
    ),
    "mistralai/Mistral-7B-v0.1": (7_241_732_096, {"model_type": "mistral"}),
    "mistralai/Mixtral-8x7B-v0.1": (46_702_792_704, {"model_type": "mixtral"}),
    "Qwen/Qwen3-30B-A3B": (
        30_532_122_624,
        {"model_type": "qwen3_moe", "num_hidden_layers": 48, "head_dim": 128, "num_experts": 128}
        | {"moe_intermediate_size": 768, "num_attention_heads": 32, "num_key_value_heads": 4}
        | {"vocab_size": 151936, "hidden_size": 2048},
    ),
    "google/gemma-2-2b": (2_614_341_888, {"model_type": "gemma2"}),
    "google-t5/t5-small": (60_506_624, {"model_type": "t5"}),
    "openai/whisper-small": (
        241_734_912,
        {"model_type": "whisper", "d_model": 768, "encoder_layers": 12, "decoder_layers": 12}
        | {"encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072, "encoder_attention_heads": 12}
        | {"decoder_attention_heads": 12, "vocab_size": 51865},
    ),
    "google/vit-base-patch16-224": (
        86_567_656,
        {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
        | {"id2label": {str(n): str(n) for n in range(1000)}},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_published_parameters(name):
    parameters, values = PUBLISHED[name]
    blueprint = blueprint_of_config(values)
    assert blueprint is not None
    assert blueprint.parameters == parameters
