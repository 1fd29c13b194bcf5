"""The shortest form of targets means to PEFT what the long one did."""

from __future__ import annotations

import os

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from tunemath.runner.blueprints import blueprint_of
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.portable import base_reference, portable, references, shortest_targets

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")

SMALL = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
MAKE = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL, num_hidden_layers=12, num_key_value_heads=2, tie_word_embeddings=True)
    ),
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(
            vocab_size=32,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=32,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=3, n_head=2)),
}


def adapted(family, **fields):
    """Return the names of the modules that PEFT adapts."""
    torch.manual_seed(0)
    model = get_peft_model(MAKE[family](), LoraConfig(r=1, **fields))
    return sorted(model.base_model.targeted_module_names)


def names(family, *endings, without=(), start=""):
    return [
        name
        for name, module in MAKE[family]().named_modules()
        if name.endswith(endings)
        and name.startswith(start)
        and not any(part in name for part in without)
        and not list(module.children())
    ]


ATTENTION = ("q_proj", "k_proj", "v_proj")
CASES = {
    "every layer": ("llama", names("llama", *ATTENTION), {"target_modules": [*sorted(ATTENTION)]}),
    "the last layers": (
        "llama",
        names("llama", "q_proj", "up_proj", without=[f".{i}." for i in range(9)]),
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [9, 10, 11]},
    ),
    "all but one layer's": (
        "llama",
        names("llama", "q_proj", without=[".3."]),
        {"target_modules": ["q_proj"], "exclude_modules": ["model.layers.3.self_attn.q_proj"]},
    ),
    "one kind of attention": (
        "bart",
        names("bart", "encoder_attn.q_proj"),
        {"target_modules": ["encoder_attn.q_proj"]},
    ),
    "one layer": (
        "gpt2",
        names("gpt2", "c_attn", "c_fc", start="transformer.h.1."),
        {"target_modules": ["c_attn", "c_fc"], "layers_to_transform": [1]},
    ),
    "one name of two": ("gpt2", names("gpt2", "attn.c_proj"), {"target_modules": ["attn.c_proj"]}),
    "the whole model": (
        "gpt2",
        names("gpt2", "c_attn", "c_fc", "c_proj"),
        {"target_modules": ["c_attn", "c_fc", "c_proj"]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_form_that_a_person_would_write_and_peft_adapts_the_same(case):
    family, chosen, expected = CASES[case]
    blueprint = blueprint_of(MAKE[family]())
    form = shortest_targets(blueprint, AdapterConfig("LORA", target_modules=chosen))
    assert form == expected
    assert adapted(family, **form) == adapted(family, target_modules=chosen) == sorted(chosen)


@pytest.mark.parametrize("family", MAKE)
def test_any_choice_of_modules_stays_that_choice(family):
    """Fifty random choices: half of the modules, one, all but one, one kind in some layers."""
    generator = torch.Generator().manual_seed(1)
    blueprint = blueprint_of(MAKE[family]())
    every = [m.name for m in blueprint.modules if m.kind in ("linear", "conv1d")]
    every = [name for name in every if name != "lm_head"]  # PEFT warns of a tied one
    for trial in range(50):
        share = (0.5, 1 / len(every), 1 - 1 / len(every), 0.2)[trial % 4]
        drawn = torch.rand(len(every), generator=generator) < share
        chosen = [name for name, taken in zip(every, drawn.tolist(), strict=True) if taken]
        if trial % 4 == 3:
            chosen = [n for n in chosen if n.rpartition(".")[2] == every[0].rpartition(".")[2]]
        if not chosen:
            continue
        form = shortest_targets(blueprint, AdapterConfig("LORA", target_modules=chosen))
        if form and trial < 12:
            assert adapted(family, **form) == sorted(chosen)
        config = AdapterConfig("LORA", target_modules=chosen)
        assert len(str(form)) < len(str({"target_modules": chosen})) or not form
        assert config["target_modules"] == chosen


def test_what_is_no_list_or_was_not_adapted_is_left_alone():
    blueprint = blueprint_of(MAKE["llama"]())
    expression = AdapterConfig("LORA", target_modules=r".*\.q_proj")
    assert shortest_targets(blueprint, expression) == {}
    chosen = names("llama", "q_proj")
    config = AdapterConfig("LORA", target_modules=chosen)
    assert shortest_targets(blueprint, config, chosen[1:]) == {}
    assert shortest_targets(blueprint, AdapterConfig("LORA", target_modules=["q_proj"])) == {}
    assert shortest_targets(blueprint, AdapterConfig("LORA", target_modules=["no"])) == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/name", ("org/name", None)),
        ("smollm2-135m", ("smollm2-135m", None)),
        ("/data/models/llama", ("./llama", None)),
        ("~/models/llama/", ("./llama", None)),
        ("../llama", ("./llama", None)),
        (r"C:\models\llama", ("./llama", None)),
        (f"/h/hub/models--org--name/snapshots/{'a' * 40}", ("org/name", "a" * 40)),
        ("/", ("./model", None)),
        ("", ("", None)),
    ],
)
def test_a_base_is_called_what_others_can_call_it(name, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert base_reference(name) == expected


def test_a_folder_here_is_a_folder_whatever_it_looks_like(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert base_reference("org/name") == ("./name", None)
    assert references(["org/name", str(tmp_path / "x/name")])[str(tmp_path / "x/name")] == (
        "./x/name",
        None,
    )


def test_a_commit_that_is_known_stays():
    values = {
        "base_model_name_or_path": "org/name",
        "revision": "abc",
        "target_modules": ["b", "a"],
    }
    assert portable(values) == {**values, "target_modules": ["a", "b"]}
    assert portable({"base_model_name_or_path": None}) == {"base_model_name_or_path": None}


def test_a_folder_that_may_not_be_looked_into_or_has_no_name_is_a_name(monkeypatch, tmp_path):
    def refused(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    assert base_reference("x" * 300) == ("x" * 300, None)
    monkeypatch.setattr(os, "stat", refused)
    assert base_reference("/root/models/llama") == ("./llama", None)
