from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
import transformers

from tunemath.errors import ModelError
from tunemath.space import UpdateSpace, lora_ledger, read_blueprint, resolve_targets

_LLAMA = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 11,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS = {
    "llama": lambda: transformers.LlamaConfig(**_LLAMA),
    "llama-tied": lambda: transformers.LlamaConfig(**_LLAMA, tie_word_embeddings=True),
    "qwen2-biases": lambda: transformers.Qwen2Config(**_LLAMA),
    "qwen3-head-dim": lambda: transformers.Qwen3Config(**_LLAMA, head_dim=16),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(MODELS[request.param]())


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    return tmp_path


def save(config, folder):
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def live_linears(model):
    head = model.get_output_embeddings()
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            found[name] = (module.in_features, module.out_features, module.bias is not None)
        elif isinstance(module, transformers.pytorch_utils.Conv1D):
            found[name] = (module.weight.shape[0], module.nf, module.bias is not None)
    return found


def test_shapes_are_those_of_the_live_model(model, folder):
    blueprint = read_blueprint(folder)
    assert blueprint.parameters == model.num_parameters()
    assert {x.name: (x.d_in, x.d_out, x.bias) for x in blueprint.linears} == live_linears(model)
    assert next(x.name for x in blueprint.linears).split(".")[2] == "0"
    assert blueprint.tied == (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )
    assert blueprint.architecture == type(model).__name__
    assert blueprint.model_type == model.config.model_type
    assert (blueprint.vocab, blueprint.hidden, blueprint.heads) == (96, 32, 4)
    assert blueprint.layers == model.config.num_hidden_layers
    assert blueprint.dtype == "float32"


@pytest.mark.parametrize("rank", [1, 3])
def test_all_linear_counts_are_pefts(model, folder, rank):
    blueprint = read_blueprint(folder)
    ledger = lora_ledger(blueprint, UpdateSpace(rank=rank))
    copy = transformers.AutoModelForCausalLM.from_pretrained(folder)
    live = peft.get_peft_model(copy, _lora(model, rank, "all-linear"))
    assert (ledger.trainable, ledger.total) == live.get_nb_trainable_parameters()
    assert ledger.percent == 100 * ledger.trainable / ledger.total
    assert sum(row["parameters"] for row in ledger.by_target) == ledger.trainable


def test_named_targets_are_pefts(model, folder):
    short = "c_proj" if model.config.model_type == "gpt2" else "q_proj"
    full = next(iter(live_linears(model)))
    ledger = lora_ledger(read_blueprint(folder), UpdateSpace(rank=2, targets=[short, full]))
    copy = transformers.AutoModelForCausalLM.from_pretrained(folder)
    live = peft.get_peft_model(copy, _lora(model, 2, [short, full]))
    assert (ledger.trainable, ledger.total) == live.get_nb_trainable_parameters()


def _lora(model, rank, targets):
    return peft.LoraConfig(
        r=rank,
        target_modules=targets,
        task_type="CAUSAL_LM",
        fan_in_fan_out=model.config.model_type == "gpt2",
    )


def test_shards_are_read_as_one(tmp_path):
    model = transformers.AutoModelForCausalLM.from_config(MODELS["llama"]())
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="50KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert read_blueprint(tmp_path / "many") == read_blueprint(tmp_path / "one")
    next((tmp_path / "many").glob("*00002*.safetensors")).unlink()
    with pytest.raises(ModelError, match=r"lacks model-00002.*which its index names"):
        read_blueprint(tmp_path / "many")


def test_an_index_may_not_leave_its_folder(tmp_path):
    save(MODELS["llama"](), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path.parent / "elsewhere.safetensors")
    index = {"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="expected a file of the same folder"):
        read_blueprint(tmp_path)


def test_16_bit_weights_and_a_head_stored_twice(tmp_path):
    model = transformers.LlamaForCausalLM(MODELS["llama"]()).half()
    model.save_pretrained(tmp_path)
    assert read_blueprint(tmp_path).dtype == "float16"
    assert not read_blueprint(tmp_path).tied
    _edit_config(tmp_path, tie_word_embeddings=True)
    blueprint = read_blueprint(tmp_path)
    assert blueprint.tied
    assert blueprint.parameters == model.num_parameters() - 96 * 32


def test_gpt2_checkpoints_without_prefix_and_with_buffers(tmp_path):
    from safetensors.torch import load_file, save_file

    model = transformers.AutoModelForCausalLM.from_config(MODELS["gpt2"]())
    model.save_pretrained(tmp_path)
    expected = read_blueprint(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    save_file(bare, tmp_path / "model.safetensors")
    assert read_blueprint(tmp_path) == expected


def _edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "DROP"}))


def _only_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _adapter(folder):
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")


def _lfs(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "is not a folder"),
        (lambda f: (f / "config.json").unlink(), "no config.json .found .*model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "expected a JSON object"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights.*found config.json"),
        (_only_pickle, "only as pickle .pytorch_model.bin.*can run any code.*save_pretrained"),
        (_adapter, "holds an adapter, not a model"),
        (_cut, "cut short or damaged"),
        (_lfs, "Git LFS pointer.*git lfs pull"),
        (lambda f: (f / "model.safetensors").write_bytes(b"12"), "not a safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "not a safetensors file"),
        (lambda f: _edit_config(f, hidden_size="DROP"), "no usable hidden_size or n_embd"),
        (lambda f: _edit_config(f, vocab_size=95), "config and weights are not of one model"),
        (lambda f: _edit_config(f, quantization_config={}), "quantised weights"),
        (lambda f: _edit_config(f, text_config={}), "a model of several parts"),
    ],
)
def test_damaged_folders(tmp_path, damage, message):
    save(MODELS["llama"](), tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=message):
        read_blueprint(tmp_path)


def test_a_mixture_of_experts_is_refused(tmp_path):
    config = transformers.MixtralConfig(**_LLAMA | {"num_hidden_layers": 1}, num_local_experts=2)
    save(config, tmp_path)
    with pytest.raises(ModelError, match="mixture of experts"):
        read_blueprint(tmp_path)


def test_a_target_that_matches_nothing_names_its_neighbours(tmp_path):
    blueprint = read_blueprint(save(MODELS["llama"](), tmp_path))
    with pytest.raises(ModelError, match=r"'q_prj' matches no.*Did you mean q_proj.*gate_proj"):
        resolve_targets(blueprint, ["v_proj", "q_prj"])
    with pytest.raises(ModelError, match=r"Did you mean model.layers.1.self_attn.q_proj"):
        resolve_targets(blueprint, ["model.layers.1.self_atn.q_proj"])
    with pytest.raises(ModelError, match="'lm_head' matches no"):
        resolve_targets(blueprint, ["lm_head"])
    with pytest.raises(ModelError, match=r"space.targets is empty"):
        resolve_targets(blueprint, [])
