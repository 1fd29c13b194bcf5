"""Which layers give a model's output, and what follows them, against a forward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers as t

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.blueprint.config import blueprint_of_config
from tunemath.space.layers import after_layers, heads_of, layers_of

_SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "pad_token_id": 0,
}  # fmt: skip
_BART = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 4, "decoder_layers": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "max_position_embeddings": 32, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_IMAGE = {"image_size": 16, "patch_size": 8}
_GEMMA3N = {
    **_SIZES, "num_key_value_heads": 2, "head_dim": 8, "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 8, "laurel_rank": 4, "num_kv_shared_layers": 0,
    "layer_types": ["full_attention"] * 3,
}  # fmt: skip

# Each model: its class, its configuration, the stack that gives its output.
MODELS = {
    "llama": (t.LlamaForCausalLM, t.LlamaConfig(**_SIZES), "model.layers"),
    "llama-classifier": (
        t.LlamaForSequenceClassification,
        t.LlamaConfig(**_SIZES),
        "model.layers",
    ),
    "gpt2": (
        t.GPT2LMHeadModel,
        t.GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=32),
        "transformer.h",
    ),
    "gpt_neox": (t.GPTNeoXForCausalLM, t.GPTNeoXConfig(**_SIZES), "gpt_neox.layers"),
    "opt": (
        t.OPTForCausalLM,
        t.OPTConfig(
            vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=32, word_embed_proj_dim=16, pad_token_id=0,
        ),
        "model.decoder.layers",
    ),
    "lfm2": (
        t.Lfm2ForCausalLM,
        t.Lfm2Config(**_SIZES, num_key_value_heads=2, layer_types=["full_attention"] * 3),
        "model.layers",
    ),
    "gemma3n": (t.Gemma3nForCausalLM, t.Gemma3nTextConfig(**_GEMMA3N), "model.layers"),
    "t5": (
        t.T5ForConditionalGeneration,
        t.T5Config(
            vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=4, num_decoder_layers=2,
            num_heads=4, decoder_start_token_id=0,
        ),
        "decoder.block",
    ),
    "bart": (t.BartForConditionalGeneration, t.BartConfig(**_BART), "model.decoder.layers"),
    "mbart": (t.MBartForConditionalGeneration, t.MBartConfig(**_BART), "model.decoder.layers"),
    "bart-classifier": (
        t.BartForSequenceClassification,
        t.BartConfig(**_BART),
        "model.decoder.layers",
    ),
    "bert": (t.BertForSequenceClassification, t.BertConfig(**_SIZES), "bert.encoder.layer"),
    "bert-masked": (t.BertForMaskedLM, t.BertConfig(**_SIZES), "bert.encoder.layer"),
    "vit": (t.ViTForImageClassification, t.ViTConfig(**_SIZES, **_IMAGE), "vit.layers"),
    "deit-teacher": (
        t.DeiTForImageClassificationWithTeacher,
        t.DeiTConfig(**_SIZES, **_IMAGE),
        "deit.layers",
    ),
}  # fmt: skip
# Gemma 3n mixes its four streams by numbered projections of their own: no layers, and no norm.
MIXED = {"gemma3n": {f"model.altup_unembed_projections.{i}" for i in range(3)}}


def live(name: str) -> torch.nn.Module:
    built, config, _ = MODELS[name]
    torch.manual_seed(0)
    return built(config).eval()


def run_after(model: torch.nn.Module, stack: str) -> set[str]:
    """Return the modules with parameters of their own that run after the stack's last layer."""
    calls: list[str] = []
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    if model.main_input_name == "pixel_values":
        inputs = {"pixel_values": torch.zeros(1, 3, 16, 16)}
    else:
        inputs = {"input_ids": torch.tensor([[5, 6, 7, 2]])}
    if model.config.is_encoder_decoder and "Sequence" not in type(model).__name__:
        inputs["decoder_input_ids"] = torch.tensor([[5, 6]])
    with torch.no_grad():
        model(**inputs)
    last = max(at for at, name in enumerate(calls) if name.startswith(f"{stack}."))
    return set(calls[last + 1 :])


@pytest.mark.parametrize("name", MODELS)
def test_what_follows_the_layers_is_what_runs_after_them(name):
    model, stack = live(name), MODELS[name][2]
    data = blueprint_of(model)
    heads = {module.name for module in heads_of(data)}
    wanted = run_after(model, stack)
    # Without a configuration nothing but the names is known, and they are in their own order.
    alone = replace(data, architecture="", modules=tuple(sorted(data.modules)))
    for blueprint in (data, alone):
        assert layers_of(blueprint)[0] == stack
        found = {module.name for module in after_layers(blueprint)}
        assert found | heads | MIXED.get(name, set()) == wanted
        assert data.head not in found


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_named_in_order(name):
    stack, layers = layers_of(blueprint_of(live(name)))
    assert layers == tuple(f"{stack}.{i}" for i in range(len(layers)))
    assert len(layers) == (2 if "decoder" in stack and name != "opt" else 3)


def test_a_classifier_is_the_output_layer_where_there_is_no_head():
    for name, roots in {
        "llama-classifier": {"score"},
        "bart-classifier": {"classification_head"},
        "bert": {"classifier"},
        "deit-teacher": {"cls_classifier", "distillation_classifier"},
    }.items():
        model = live(name)
        found = {module.name for module in heads_of(blueprint_of(model))}
        named = {n.rpartition(".")[0] for n, _ in model.named_parameters()}
        assert found == {n for n in named if n.partition(".")[0] in roots} != set()


@pytest.mark.parametrize(
    ("embedding", "stack"),
    [("text.embed_tokens", "text.layers"), ("", "vision.layers")],
    ids=["beside the embedding", "the largest where there is none"],
)
def test_a_tower_for_images_is_not_taken_for_the_layers(embedding, stack):
    def layer(name: str, width: int) -> Module:
        return Module(name, "linear", (("weight", (width, width)),))

    modules = (
        layer("text.layers.0.q", 4), layer("text.layers.1.q", 4), layer("text.norm", 1),
        layer("vision.layers.0.q", 8), layer("vision.layers.1.q", 8), layer("vision.norm", 1),
    )  # fmt: skip
    blueprint = Blueprint("", "", modules, embedding=embedding)
    assert layers_of(blueprint) == (stack, (f"{stack}.0", f"{stack}.1"))
    (norm,) = after_layers(blueprint)
    assert norm.name == stack.replace("layers", "norm")


def test_the_words_of_a_kosmos_2_are_its_layers():
    config = t.Kosmos2Config(
        text_config={"vocab_size": 64, "embed_dim": 16, "layers": 2, "ffn_dim": 24,
                     "attention_heads": 2, "max_position_embeddings": 32},
        vision_config={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
                       "num_attention_heads": 4, **_IMAGE},
    )  # fmt: skip
    with torch.device("meta"):
        data = blueprint_of(t.Kosmos2ForConditionalGeneration(config))
    assert layers_of(data)[0] == "text_model.model.layers"
    assert [module.name for module in after_layers(data)] == ["text_model.model.layer_norm"]


def test_both_towers_of_a_clip_are_not_one_stack():
    tower = {k: v for k, v in _SIZES.items() if k != "pad_token_id"}
    text = {**tower, "max_position_embeddings": 16}
    config = {"model_type": "clip", "text_config": text, "vision_config": {**tower, **_IMAGE}}
    blueprint = blueprint_of_config(config)
    assert blueprint is not None
    stack, layers = layers_of(blueprint)
    assert layers == tuple(f"{stack}.{i}" for i in range(3))
    after = {module.name for module in after_layers(blueprint)}
    assert len({name.partition(".")[0] for name in (stack, *after)}) == 1


def test_a_model_without_numbered_layers_is_refused():
    blueprint = Blueprint("odd", "Odd", (Module("w", "linear", (("weight", (2, 2)),)),))
    with pytest.raises(ModelError, match="this odd has no numbered layers"):
        layers_of(blueprint)
