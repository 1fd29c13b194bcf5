from __future__ import annotations

import re

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from saved_models import MODELS, edit_config, model, modules, save, ties

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.space import LoraSpace, ledger_of, read_blueprint

# Families that are described without transformers, and some that are not.
UNKNOWN = ("wav2vec2", "mamba", "llava", "qwen2_vl")
KNOWN = [name for name in MODELS if name not in UNKNOWN]


@pytest.mark.parametrize("name", KNOWN)
def test_a_folder_gives_the_live_model(tmp_path, name):
    read, live = read_blueprint(save(name, tmp_path)), blueprint_of(model(name))
    assert read.modules == live.modules
    assert (read.tied, read.embedding, read.head) == (live.tied, live.embedding, live.head)
    assert (read.model_type, read.architecture) == (live.model_type, live.architecture)
    assert read.parameters == model(name).num_parameters()
    assert (read.dtype, read.quantisation) == ("float32", "")
    assert read.stored_bytes == 4 * read.parameters
    alone = read_blueprint(tmp_path / "config.json")
    assert alone.modules == live.modules
    assert alone.stored_bytes is None


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_family_that_is_not_known_is_told_by_its_weights(tmp_path, name):
    read, live = read_blueprint(save(name, tmp_path)), blueprint_of(model(name))
    assert modules(read) == modules(live)
    assert (read.model_type, read.architecture) == (live.model_type, live.architecture)
    assert read.config["model_type"] == live.model_type
    with pytest.raises(ModelError, match=rf"config.json describes a {live.model_type}, whose"):
        read_blueprint(tmp_path / "config.json")


def test_shards_are_held_against_the_configuration_too(tmp_path):
    save("llama", tmp_path / "one")
    save("llama", tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    expected = read_blueprint(tmp_path / "one")
    assert read_blueprint(tmp_path / "many") == expected
    assert read_blueprint(tmp_path / "one" / "model.safetensors") == expected
    assert read_blueprint(tmp_path / "many" / "model.safetensors.index.json") == expected
    next((tmp_path / "many").glob("*00002*.safetensors")).unlink()
    with pytest.raises(ModelError, match=r"lacks model-00002.*which its index names"):
        read_blueprint(tmp_path / "many")


@pytest.mark.parametrize("name", ["llama", "qwen3-head-dim", "gpt2"])
def test_a_folders_lora_counts_are_pefts(tmp_path, name):
    ledger = ledger_of(read_blueprint(save(name, tmp_path)), LoraSpace(rank=3))
    copy = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    config = peft.LoraConfig(r=3, target_modules="all-linear", fan_in_fan_out=name == "gpt2")
    live = peft.get_peft_model(copy, config)
    assert (ledger.trainable, ledger.total) == live.get_nb_trainable_parameters()


def test_a_target_that_matches_nothing_names_its_neighbours(tmp_path):
    blueprint = read_blueprint(save("llama", tmp_path))
    with pytest.raises(ModelError, match=r"'q_prj' matches no.*Did you mean q_proj.*gate_proj"):
        ledger_of(blueprint, LoraSpace(targets=["v_proj", "q_prj"]))
    with pytest.raises(ModelError, match=r"Did you mean model.layers.1.self_attn.q_proj"):
        ledger_of(blueprint, LoraSpace(targets=["model.layers.1.self_atn.q_proj"]))
    with pytest.raises(ModelError, match=r"space.targets is empty"):
        ledger_of(blueprint, LoraSpace(targets=[]))


# The task, the class that it chooses, and the model whose checkpoint it is read from.
_TASKS = [
    ("SEQ_CLS", "LlamaForSequenceClassification", "llama"),
    ("TOKEN_CLS", "LlamaForTokenClassification", "llama"),
    ("FEATURE_EXTRACTION", "LlamaModel", "llama"),
    ("CAUSAL_LM", "LlamaForCausalLM", "llama-base"),
    ("SEQ_CLS", "BertForSequenceClassification", "bert"),
    ("SEQ_CLS", "GPT2ForSequenceClassification", "gpt2"),
]


@pytest.mark.parametrize(("task", "wanted", "name"), _TASKS)
def test_a_task_chooses_the_class_and_the_checkpoint_may_lack_its_head(
    tmp_path, task, wanted, name
):
    save(name, tmp_path)
    read = read_blueprint(tmp_path, task_type=task)
    live = getattr(transformers, wanted).from_pretrained(tmp_path)
    assert read.architecture == wanted
    assert read.modules == blueprint_of(live).modules
    assert read.parameters == live.num_parameters()


def test_16_bit_weights_and_a_head_stored_twice(tmp_path):
    half = transformers.LlamaForCausalLM(model("llama").config).half()
    half.save_pretrained(tmp_path)
    assert read_blueprint(tmp_path).dtype == "float16"
    assert not read_blueprint(tmp_path).tied
    edit_config(tmp_path, tie_word_embeddings=True)
    read = read_blueprint(tmp_path)
    assert read.tied
    assert read.parameters == half.num_parameters() - 64 * 32
    assert read.stored_bytes == 2 * read.parameters


def test_gpt2_checkpoints_without_prefix_and_with_buffers(tmp_path):
    save("gpt2", tmp_path)
    expected = read_blueprint(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    save_file(bare, tmp_path / "model.safetensors")
    assert read_blueprint(tmp_path) == expected


def test_more_layers_than_the_configuration_names_are_left_out(tmp_path):
    """As transformers does; people cut models short by their configuration."""
    save("llama", tmp_path)
    edit_config(tmp_path, num_hidden_layers=1)
    live = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    read = read_blueprint(tmp_path)
    assert read.parameters == live.num_parameters()
    assert read.stored_bytes == 4 * read.parameters


@pytest.mark.parametrize("tied", [True, False])
def test_an_unknown_familys_configuration_says_if_a_stored_head_is_tied(tmp_path, tied):
    save("llama", tmp_path)
    edit_config(tmp_path, model_type="strange", tie_word_embeddings=tied)
    read = read_blueprint(tmp_path)
    assert bool(read.tied) == tied
    assert read.parameters == model("llama").num_parameters() - tied * 64 * 32


@pytest.mark.parametrize("classes", [None, "LlamaForCausalLM", [], {}])
def test_an_unknown_familys_configuration_may_be_odd(tmp_path, classes):
    save("vit", tmp_path)
    edit_config(tmp_path, model_type="strange", architectures=classes, tie_word_embeddings=True)
    assert read_blueprint(tmp_path).architecture == ""


class _Recorded:
    """A fallback that keeps what it was asked."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def __call__(self, config, task_type):
        self.asked.append((config["model_type"], task_type))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def strange(tmp_path):
    save("llama", tmp_path)
    edit_config(tmp_path, model_type="strange")
    return tmp_path


def test_a_fallback_describes_what_is_not_known(strange):
    fallback = _Recorded(blueprint_of(model("llama")))
    read = read_blueprint(strange, task_type="CAUSAL_LM", fallback=fallback)
    assert read.modules == fallback.answer.modules
    assert read.stored_bytes == 4 * read.parameters
    assert read_blueprint(strange / "config.json", fallback=fallback) == read
    assert fallback.asked == [("strange", "CAUSAL_LM"), ("strange", None)]


def test_a_fallback_is_not_asked_about_a_known_family_or_without_a_configuration(tmp_path):
    fallback = _Recorded(AssertionError())
    save("llama", tmp_path)
    read_blueprint(tmp_path, fallback=fallback)
    (tmp_path / "config.json").unlink()
    read_blueprint(tmp_path, fallback=fallback)
    assert not fallback.asked


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModelError("no such family"), "no such family"),
        (ModuleNotFoundError("No module", name="torch"), "torch is not installed"),
    ],
)
def test_where_the_fallback_fails_the_weights_speak_and_a_note_says_so(strange, error, words):
    read = read_blueprint(strange, fallback=_Recorded(error))
    assert modules(read) == modules(blueprint_of(model("llama")))
    assert ties(read) == set()
    (note,) = read.notes
    assert re.search(rf"names and shapes alone, and may be otherwise: {words}", note)
    with pytest.raises(ModelError, match=words):
        read_blueprint(strange / "config.json", fallback=_Recorded(error))


@pytest.mark.parametrize(
    "error",
    [
        ImportError("undefined symbol: aoti"),
        ModuleNotFoundError("No module named 'tunemath.nothing'", name="tunemath.nothing"),
        RuntimeError("a fault"),
    ],
)
def test_a_fallbacks_own_fault_is_no_reason_to_guess(strange, error):
    for path in (strange, strange / "config.json"):
        with pytest.raises(type(error), match=str(error)):
            read_blueprint(path, fallback=_Recorded(error))


def test_a_guess_says_why_and_what_is_described_says_nothing(strange, tmp_path):
    (note,) = read_blueprint(strange).notes
    assert note.endswith("a strange is not known without transformers")
    (strange / "config.json").unlink()
    (note,) = read_blueprint(strange).notes
    assert note.endswith("there is no config.json beside them")
    assert read_blueprint(save("llama", tmp_path / "known")).notes == ()


def test_a_fallbacks_blueprint_is_held_against_the_weights(strange):
    fallback = _Recorded(blueprint_of(model("qwen3-head-dim")))
    with pytest.raises(ModelError, match="not of one model"):
        read_blueprint(strange, fallback=fallback)
