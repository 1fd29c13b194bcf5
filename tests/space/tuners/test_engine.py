from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import warnings
from math import prod
from pathlib import Path

import peft
import pytest
import torch
from peft_models import FAMILIES, base, blueprint
from torch import nn

from tunemath.runner.blueprints import blueprint_of
from tunemath.space.blueprint import Module
from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, Change, Group, Part, Shared, peft_change, peft_ledger
from tunemath.space.peft.change import grouped, held
from tunemath.space.peft.config import peft_facts
from tunemath.space.peft.count import _TUNERS, tuner_of

QUERY = {"target_modules": ["q_proj"], "r": 2}


def change_of(family: str, **values) -> Change:
    return peft_change(blueprint(family), AdapterConfig("LORA", **values))


# --- the registry and the facts


def test_every_tuner_type_is_counted():
    assert sorted(_TUNERS) == sorted(peft_facts()["types"])
    assert len(_TUNERS) == 45
    for peft_type in _TUNERS:
        assert callable(tuner_of(peft_type))


def test_the_facts_are_those_of_the_installed_peft():
    path = Path(__file__).parents[3] / "scripts/facts.py"
    spec = importlib.util.spec_from_file_location("facts", path)
    facts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(facts)
    assert json.loads(json.dumps(facts.peft_facts())) == peft_facts()


def test_a_closed_form_that_is_not_the_sum_of_its_parts_is_caught():
    module = blueprint("llama").modules[0]
    group = Group((module,), (Part("lora_A.weight", (2, 32)), Part("b", (9,), False)), 64)
    held(Change((group,)))
    for wrong in (Change((dataclasses.replace(group, trainable=65),)),
                  Change(shared=(Shared("bank", group.parts, 73),))):  # fmt: skip
        with pytest.raises(AssertionError, match="closed form"):
            held(wrong)


def test_modules_are_grouped_by_all_but_their_names():
    same = [Module(n, "linear", (("weight", (4, 4)),)) for n in ("a", "b")]
    other = Module("c", "conv1d", (("weight", (4, 4)),))
    assert [*grouped([*same, other]).values()] == [tuple(same), (other,)]


# --- names that match nothing


@pytest.mark.parametrize(
    ("values", "unmatched"),
    [
        ({"target_modules": ["q_proj", "qproj", "w1"]}, ("qproj", "w1")),
        ({"target_modules": ["q_proj", "self_attn.up_proj"]}, ("self_attn.up_proj",)),
        ({"target_modules": "all-linear"}, ()),
        ({"target_modules": r".*(q_proj|nothing)"}, ()),
        ({}, ()),
        ({**QUERY, "modules_to_save": ["lm_head", "head2", "classifier"]}, ("head2", "classifier")),
        ({**QUERY, "modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}, ()),
        ({**QUERY, "target_parameters": ["k_proj.weight", "experts.w1"]}, ("experts.w1",)),
    ],
)
def test_names_asked_for_that_match_nothing_are_kept(values, unmatched):
    ledger = peft_ledger(blueprint("llama"), AdapterConfig("LORA", **values))
    assert ledger.unmatched == ledger.change.unmatched == unmatched


@pytest.mark.parametrize(
    ("names", "unmatched"),
    [
        (["q_proj", "gate_proj", "up_proj", "down_proj"], ()),
        (["q_proj", "gate", "w1"], ("w1",)),
    ],
)
def test_former_names_of_experts_are_matched_by_their_tensors(names, unmatched):
    assert change_of("qwen3_moe", target_modules=names).unmatched == unmatched


@pytest.mark.parametrize("peft_type", ["VERA", "IA3", "OFT", "MISS", "LOHA"])
def test_names_that_match_nothing_are_kept_for_every_type(peft_type):
    values = {"IA3": {"feedforward_modules": []}, "MISS": {"r": 4}}.get(peft_type, {})
    config = AdapterConfig(peft_type, target_modules=["q_proj", "qproj"], **values)
    assert peft_ledger(blueprint("llama"), config).unmatched == ("qproj",)


# --- layers used again


def test_layers_used_again_share_their_weights_and_have_their_own_adapters():
    change = change_of("llama", **QUERY, layer_replication=[[0, 2], [0, 2], [1, 2]])
    (group,) = change.groups
    names = [module.name.removeprefix("model.layers.") for module in group.modules]
    assert names == [f"{i}.self_attn.q_proj" for i in (0, 1, 0, 1, 1)]
    assert change.removed == frozenset()


def test_layers_left_out_are_removed():
    change = change_of("llama", **QUERY, layer_replication=[[1, 2]])
    assert all(name.startswith("model.layers.0.") for name in change.removed)
    assert len(change.removed) == 9


# --- quantised models and notes


class Params4bit(nn.Parameter):
    """Two values a byte, as bitsandbytes packs them; PEFT knows it by this name."""

    def __deepcopy__(self, memo):
        return self


def test_four_bit_weights_count_by_their_logical_size():
    model = nn.Module()
    model.packed, model.head = nn.Linear(8, 6, bias=False), nn.Linear(6, 2)
    model.packed.weight = Params4bit(torch.zeros(24, 1, dtype=torch.uint8), requires_grad=False)
    data = blueprint_of(model)
    assert data.by_name["packed"].shape == (6, 8)
    config = AdapterConfig("LORA", target_modules=["packed", "head"], r=2)
    ledger = peft_ledger(data, config)
    assert ledger.total == 6 * 8 + 6 * 2 + 2 + 2 * (8 + 6) + 2 * (6 + 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = peft.get_peft_model(
            copy.deepcopy(model), peft.LoraConfig(target_modules=["packed", "head"], r=2)
        )
    assert live.get_nb_trainable_parameters() == (ledger.trainable, ledger.total)


def test_weights_that_peft_holds_as_buffers_are_noted():
    packed = dataclasses.replace(blueprint("llama"), quantisation="gptq")
    (note,) = peft_change(packed, AdapterConfig("LORA", **QUERY)).notes
    assert "quantised as gptq" in note


# --- the ledger


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_sum_to_the_totals_and_name_every_module(family):
    config = AdapterConfig("LORA", target_modules="all-linear", bias="all", task_type="SEQ_CLS")
    ledger = peft_ledger(blueprint(family), config)
    rows = ledger.by_module()
    assert [row["name"] for row in rows] == [m.name for m in blueprint(family).modules]
    assert sum(row["parameters"] for row in rows) == ledger.total
    assert sum(row["trainable"] for row in rows) == ledger.trainable
    assert ledger.percent == pytest.approx(100 * ledger.trainable / ledger.total)
    assert ledger.base == sum(p.numel() for p in base(family).parameters())


def test_a_row_has_its_module_and_what_was_added():
    ledger = peft_ledger(blueprint("llama"), AdapterConfig("LORA", **QUERY))
    row = next(row for row in ledger.by_module() if row["name"].endswith("0.self_attn.q_proj"))
    assert row == {
        "name": "model.layers.0.self_attn.q_proj",
        "kind": "linear",
        "shape": [32, 32],
        "parameters": 32 * 32 + 2 * (32 + 32),
        "trainable": 2 * (32 + 32),
    }


def test_what_no_module_has_is_a_row_of_its_own():
    bank = Shared("base_model.bank", (Part("bank", (4, 3)), Part("still", (5,), False)), 12)
    ledger = Ledger(blueprint("llama"), Change(shared=(bank,)))
    assert ledger.by_module()[-1] == {
        "name": "base_model.bank", "kind": "shared", "shape": [4, 3], "parameters": 17,
        "trainable": 12,
    }  # fmt: skip
    assert (ledger.trainable, ledger.total) == (12, ledger.base + 17)


def test_unfrozen_and_removed_parameters_are_those_of_the_model():
    model = blueprint("qwen2")
    names = frozenset({"model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"})
    gone = frozenset({"model.layers.0.mlp.up_proj.weight"})
    ledger = Ledger(model, Change(unfrozen=names, removed=gone))
    assert ledger.trainable == 32 + 64 * 32  # the tied weight once
    sizes = {name: prod(shape) for name, shape in model.tensors()}
    assert ledger.total == model.parameters - sizes[next(iter(gone))]
