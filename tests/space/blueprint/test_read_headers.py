from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file
from saved_models import MODELS, model, modules, save, ties, write_safetensors

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.space import read_blueprint


@pytest.mark.parametrize("name", MODELS)
def test_headers_alone_give_the_modules_of_the_live_model(tmp_path, name):
    read = read_blueprint(save(name, tmp_path, config=False))
    live = blueprint_of(model(name))
    assert modules(read) == modules(live)
    assert read.parameters == live.parameters == model(name).num_parameters()
    assert (read.model_type, read.config) == ("", {})


# What a file cannot say: get_input_embeddings() of speech and image-and-text towers.
_UNSAID = {"wav2vec2", "clip"}


@pytest.mark.parametrize("name", [name for name in MODELS if name not in _UNSAID])
def test_headers_alone_tell_embedding_head_and_ties(tmp_path, name):
    read = read_blueprint(save(name, tmp_path, config=False))
    live = blueprint_of(model(name))
    assert (read.embedding, read.head, ties(read)) == (live.embedding, live.head, ties(live))


@pytest.mark.parametrize("name", ["llama", "mixtral", "t5"])
def test_shards_their_index_and_a_single_file_are_one(tmp_path, name):
    one = save(name, tmp_path / "one", config=False)
    many = save(name, tmp_path / "many", config=False, max_shard_size="20KB")
    assert len(list(many.glob("*.safetensors"))) > 2
    expected = read_blueprint(one)
    assert read_blueprint(one / "model.safetensors") == expected
    assert read_blueprint(many) == expected
    assert read_blueprint(many / "model.safetensors.index.json") == expected
    with pytest.raises(ModelError, match=r"is one file of .* give their folder, or their index"):
        read_blueprint(next(many.glob("*-00001-of-*.safetensors")))


def test_layers_are_in_the_order_of_their_numbers(tmp_path):
    tensors = {f"model.layers.{n}.mlp.up_proj.weight": ("F16", (6, 4)) for n in (10, 2, 0)}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    found = [m.name.split(".")[2] for m in read_blueprint(tmp_path).modules]
    assert found == ["0", "2", "10"]


def test_buffers_masks_and_layers_for_prediction_are_left_out(tmp_path):
    own = {
        "model.embed_tokens.weight": ("BF16", (16, 4)),
        "model.layers.0.mlp.gate.weight": ("BF16", (2, 4)),
        "lm_head.weight": ("BF16", (16, 4)),
    }
    other = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (2,)),
        "model.layers.0.mlp.gate.e_score_correction_bias": ("F32", (2,)),
        "transformer.h.0.attn.bias": ("U8", (1, 1, 8, 8)),
        "transformer.h.0.attn.masked_bias": ("F32", ()),
        "bert.embeddings.position_ids": ("I64", (1, 16)),
        "bert.embeddings.token_type_ids": ("I64", (1, 16)),
        "model.special_tokens": ("I32", (5,)),
        "model.layers.0.mlp.tid2eid": ("I64", (16, 2)),
        "model.layers.1.eh_proj.weight": ("BF16", (4, 8)),
        "model.layers.1.self_attn.q_proj.weight": ("BF16", (4, 4)),
        "mtp.layers.0.mlp.up_proj.weight": ("BF16", (4, 4)),
    }
    write_safetensors(tmp_path / "model.safetensors", own | other)
    read = read_blueprint(tmp_path)
    assert {name for name, _ in read.tensors()} == own.keys()
    assert read.stored_bytes == 2 * (64 + 8 + 64)


@pytest.mark.parametrize("name", ["gpt2", "bloom"])
def test_published_checkpoints_without_the_prefix_are_the_language_model(tmp_path, name):
    """openai-community/gpt2 and bigscience/bloom-560m store the base model's names."""
    model(name).transformer.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    read, live = read_blueprint(tmp_path), blueprint_of(model(name))
    assert modules(read) == modules(live)
    assert ties(read) == ties(live)


def test_old_names_of_norms_are_todays(tmp_path):
    tensors = {
        "bert.embeddings.LayerNorm.gamma": ("F32", (4,)),
        "bert.embeddings.LayerNorm.beta": ("F32", (4,)),
    }
    write_safetensors(tmp_path / "model.safetensors", tensors)
    (module,) = read_blueprint(tmp_path).modules
    assert module.tensors == (("weight", (4,)), ("bias", (4,)))
    assert module.kind == "norm"


class _Normed(torch.nn.Module):
    def __init__(self, bias):
        super().__init__()
        norm = torch.nn.utils.parametrizations.weight_norm
        self.layers = torch.nn.ModuleList([norm(torch.nn.Linear(6, 5, bias=bias))])
        self.conv = norm(torch.nn.Conv1d(5, 4, 3, bias=bias))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("old", [True, False])
def test_weight_normed_layers_are_those_of_the_live_model(tmp_path, old, bias):
    live, tensors = _Normed(bias), {}
    for name, parameter in live.named_parameters():
        if old:  # the names before torch 2.1
            name = name.replace(".parametrizations.weight.original0", ".weight_g")
            name = name.replace(".parametrizations.weight.original1", ".weight_v")
        tensors[name] = ("F32", tuple(parameter.shape))
    write_safetensors(tmp_path / "model.safetensors", tensors)
    read = read_blueprint(tmp_path)
    assert modules(read) == modules(blueprint_of(live))
    assert read.parameters == sum(p.numel() for p in live.parameters())


def _experts(*numbers, width=6, parts=("w1", "w2", "w3")):
    shapes = {"w1": (width, 4), "w3": (width, 4), "w2": (4, width)}
    return {
        f"model.layers.0.block_sparse_moe.experts.{n}.{part}.weight": ("F16", shapes[part])
        for n in numbers
        for part in parts
    }


def test_experts_one_by_one_become_single_tensors(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", _experts(0, 1, 2))
    (module,) = read_blueprint(tmp_path).modules
    assert (module.name, module.kind) == ("model.layers.0.mlp.experts", "experts")
    assert module.tensors == (("gate_up_proj", (3, 12, 4)), ("down_proj", (3, 4, 6)))


@pytest.mark.parametrize(
    "tensors",
    [
        _experts(0, 2),
        _experts(0) | _experts(1, width=8),
        _experts(0, 1) | _experts(2, parts=("w1",)),
    ],
    ids=["one lacking", "not alike", "a part lacking"],
)
def test_experts_that_are_not_whole_are_refused(tmp_path, tensors):
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(
        ModelError, match=rf"{tmp_path}: the experts of model.layers.0.* not alike or not all"
    ):
        read_blueprint(tmp_path)


@pytest.mark.parametrize("apart", [True, False])
def test_a_t5_with_a_head_of_its_own_has_it_where_both_are_stored(tmp_path, apart):
    config = transformers.T5Config(
        vocab_size=96, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config)
    tensors = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if "embed_tokens" not in name and name != "lm_head.weight"
    }
    if apart:
        tensors["lm_head.weight"] = torch.randn(96, 32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    values = {**config.to_dict(), "tie_word_embeddings": False}
    values["architectures"] = ["T5ForConditionalGeneration"]
    (tmp_path / "config.json").write_text(json.dumps(values), "utf-8")
    live = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
    assert read_blueprint(tmp_path).parameters == live.num_parameters()
    assert (live.num_parameters() == model.num_parameters()) != apart
