"""Folders that are not what they should be: each is refused in one line that says what to do."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import assert_equal_logits, make_llama

from tunemath.contract import ModelChoice
from tunemath.errors import ModelError, TunemathError
from tunemath.runner.loading import loading_errors
from tunemath.runner.models import attach_adapter, load_adapter, load_base
from tunemath.runner.resolve import resolve_model
from tunemath.space import AdapterSpace, LoraSpace, PrefixSpace, UnfreezeSpace

CPU = torch.device("cpu"), torch.float32
IDS = torch.tensor([[5, 6, 7, 9]])
Damage = Callable[[Path], Any]


def edited(name: str, **changes: Any) -> Damage:
    def edit(folder: Path) -> None:
        values = json.loads((folder / name).read_text()) | changes
        kept = {key: value for key, value in values.items() if value != "DROP"}
        (folder / name).write_text(json.dumps(kept))

    return edit


def text(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content)


def cut(name: str, end: int | None = -50) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:end])


def gone(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(TunemathError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def model_folder(tmp_path: Path, tiny_model: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (text("config.json", "{"), ("config.json' is not a valid JSON",)),
        (text("config.json", "[]"), ("Should have a `model_type` key",)),
        (edited("config.json", model_type="DROP"), ("Should have a `model_type` key",)),
        (edited("config.json", model_type="strange"), ("`strange`", "version of Transformers")),
        (edited("config.json", model_type="vit"), ("ViTConfig",)),
        (edited("config.json", hidden_size="x"), ("'hidden_size' expected int",)),
        (edited("config.json", num_attention_heads=7), ("not a multiple of the number of att",)),
        (edited("config.json", vocab_size=7), ("is [", "by the configuration [7, ", "one model")),
        (
            edited("config.json", num_hidden_layers=3),
            ("lack 9 of the parameters that LlamaForCausalLM has", "model.layers.2.", "one model"),
        ),
        (
            edited("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
            ("requires optimum",),
        ),
        (edited("config.json", quantization_config={"quant_method": None}), ("quant_method",)),
        (gone("model.safetensors"), ("has no weights; expected model.safetensors",)),
        (pickled, ("only as pickle", "can run any code")),
        (cut("model.safetensors"), ("model.safetensors", "cut short", "download it again")),
        (cut("model.safetensors", 0), ("model.safetensors", "cut short (0 bytes)")),
    ],
)
def test_a_base_that_is_not_whole_is_refused(model_folder, damage, words):
    damage(model_folder)
    base = resolve_model(ModelChoice(id=str(model_folder)))
    message = refused(lambda: load_base(base, *CPU))
    assert str(model_folder) in message
    assert all(word in message for word in words), message


SPACES = {
    "lora": LoraSpace(rank=2),
    "prefix": PrefixSpace(method="prefix", length=3),
    "adapter": AdapterSpace(method="adapter", bottleneck=3),
    "bitfit": UnfreezeSpace(method="layernorm"),
}
FILES = {
    "lora": ("adapter_config.json", "adapter_model.safetensors"),
    "prefix": ("adapter_config.json", "adapter_model.safetensors"),
    "adapter": ("update.json", "update.safetensors"),
    "bitfit": ("update.json", "update.safetensors"),
}


@cache
def base() -> Any:
    return make_llama(torch.float32)


@pytest.fixture(params=SPACES)
def saved(request, tmp_path):
    """Return a saved update's folder, and the names of its two files."""
    model = attach_adapter(copy.deepcopy(base()), SPACES[request.param], 0)
    model.save_pretrained(tmp_path / "update")
    load_adapter(copy.deepcopy(base()), tmp_path / "update")
    return tmp_path / "update", *FILES[request.param]


def no_tensors(folder: Path, name: str) -> None:
    save_file({"x": torch.zeros(2)}, folder / name)


@pytest.mark.parametrize(
    ("damage", "at", "words"),
    [
        (lambda f, *_: shutil.rmtree(f), None, "holds no saved update"),
        (lambda f, *names: [(f / name).unlink() for name in names], None, "holds no saved update"),
        (lambda f, about, _: gone(about)(f), None, "neither update.json nor adapter_config.json"),
        (lambda f, about, _: text(about, "")(f), 1, "is not valid JSON"),
        (lambda f, about, _: text(about, '{"space": {')(f), 1, "is not valid JSON"),
        (lambda f, about, _: text(about, "[1]")(f), 1, "again"),
        (lambda f, about, _: text(about, "{}")(f), 1, "again"),
        (lambda f, about, _: edited(about, space=3, peft_type=3)(f), 1, "again"),
        (lambda f, about, _: edited(about, space={}, peft_type="NO")(f), 1, "again"),
        (lambda f, about, _: edited(about, base=3, peft_type=None)(f), 1, "again"),
        (lambda f, _, tensors: gone(tensors)(f), 2, "is missing, so the update is not whole; copy"),
        (lambda f, _, tensors: cut(tensors, 0)(f), 2, "is cut short or damaged .*; copy it again"),
        (lambda f, _, tensors: cut(tensors)(f), 2, "is cut short or damaged .*; copy it again"),
        (lambda f, _, tensors: no_tensors(f, tensors), None, "another model"),
    ],
)
def test_a_damaged_update_is_refused_by_its_file(saved, damage, at, words):
    damage(*saved)
    with pytest.raises(TunemathError, match=words):
        load_adapter(copy.deepcopy(base()), saved[0])
    message = refused(lambda: load_adapter(copy.deepcopy(base()), saved[0]))
    assert str(saved[0] if at is None else saved[0] / saved[at]) in message


def test_an_update_left_beside_another_is_not_taken_for_it(tmp_path):
    for name in ("lora", "adapter"):
        attach_adapter(copy.deepcopy(base()), SPACES[name], 0).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"two updates, by update.json and by adapter_config.json"):
        load_adapter(copy.deepcopy(base()), tmp_path)


def test_a_fully_trained_model_that_is_not_whole_is_refused(tmp_path):
    model = attach_adapter(copy.deepcopy(base()), UnfreezeSpace(method="full"), 0)
    model.save_pretrained(tmp_path)
    load_adapter(copy.deepcopy(base()), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = "model.layers.1.mlp.up_proj.weight"
    save_file({n: t for n, t in tensors.items() if n != lost}, tmp_path / "model.safetensors")
    message = refused(lambda: load_adapter(copy.deepcopy(base()), tmp_path))
    assert f"{tmp_path}: the weights lack 1 of the parameters" in message
    assert lost in message
    cut("model.safetensors")(tmp_path)
    message = refused(lambda: load_adapter(copy.deepcopy(base()), tmp_path))
    assert f"{tmp_path}/model.safetensors" in message
    assert "cut short" in message


def test_a_tensor_that_an_adapter_lacks_is_no_fresh_one(tmp_path):
    """PEFT only warns, and leaves A random and B zero."""
    attach_adapter(copy.deepcopy(base()), SPACES["lora"], 0).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    lost = next(name for name in tensors if "layers.1.mlp.up_proj.lora_B" in name)
    del tensors[lost]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"does not hold all that .*layers.1.mlp.up_proj.lora_B"):
        load_adapter(copy.deepcopy(base()), tmp_path)


def test_an_adapter_of_a_wider_model_is_refused(tmp_path):
    attach_adapter(copy.deepcopy(base()), SPACES["lora"], 0).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    wider = {name: torch.cat([t, t], dim=-1) for name, t in tensors.items()}
    save_file(wider, tmp_path / "adapter_model.safetensors")
    message = refused(lambda: load_adapter(copy.deepcopy(base()), tmp_path))
    assert f"PEFT cannot load the adapter in {tmp_path}" in message
    assert "size mismatch" in message


def test_an_adapter_in_pickle_is_refused(tmp_path):
    attach_adapter(copy.deepcopy(base()), SPACES["lora"], 0).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    torch.save(tensors, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"adapter_model.bin is pickle, which can run any code"):
        load_adapter(copy.deepcopy(base()), tmp_path)


# --- PEFT's other ways of learning a prompt

VIRTUAL = {
    "P_TUNING": peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8
    ),
    "PROMPT_TUNING": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "CPT": peft.CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=[4, 8, 9], cpt_mask=[1, 1, 1],
        cpt_tokens_type_mask=[1, 2, 3],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", VIRTUAL)
@torch.no_grad()
def test_prompts_that_peft_saved_run_as_in_peft(kind, tmp_path):
    torch.manual_seed(0)
    theirs = peft.get_peft_model(copy.deepcopy(base()), VIRTUAL[kind])
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base()), tmp_path).eval()
    expected = loaded(input_ids=IDS).logits[:, -IDS.shape[1] :]
    moved = (expected - base()(input_ids=IDS).logits).abs().max()
    assert moved > 1e-2
    found = load_adapter(copy.deepcopy(base()), tmp_path)(input_ids=IDS).logits
    assert_equal_logits(found, expected)


@pytest.mark.parametrize(
    "config",
    [
        peft.MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, num_tasks=2),
        peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
    ids=["multitask", "cartridge"],
)
def test_prompts_that_need_more_than_the_input_are_refused(config, tmp_path):
    peft.get_peft_model(copy.deepcopy(base()), config).save_pretrained(tmp_path)
    kind = config.peft_type.value
    with pytest.raises(ModelError, match=rf"holds a {kind} adapter, .*; load it with peft.PeftMod"):
        load_adapter(copy.deepcopy(base()), tmp_path)


def test_other_adapters_of_peft_are_pefts_own(tmp_path):
    config = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1)
    theirs = peft.get_peft_model(copy.deepcopy(base()), config).eval()
    theirs.save_pretrained(tmp_path)
    again = load_adapter(copy.deepcopy(base()), tmp_path)
    assert isinstance(again, peft.PeftModel)
    assert torch.equal(again(input_ids=IDS).logits, theirs(input_ids=IDS).logits)


# --- what is no fault of a file


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), ZeroDivisionError("a fault")])
def test_other_faults_are_not_put_down_to_files(error):
    with pytest.raises(type(error)), loading_errors("cannot load it"):
        raise error


def test_an_error_without_words_has_its_name():
    with (
        pytest.raises(ModelError, match="cannot load it: KeyError"),
        loading_errors("cannot load it"),
    ):
        raise KeyError
