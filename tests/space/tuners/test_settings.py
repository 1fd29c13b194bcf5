from __future__ import annotations

import copy
import re
import warnings

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft_models import agree, agree_on, base, blueprint, task_of
from torch import nn

from tunemath.errors import ModelError
from tunemath.space.peft import AdapterConfig, peft_change
from tunemath.space.peft.tuners.settings import fraction, one_of, rank_of, whole

# Each tuner type: settings, and the buffers of PEFT's that the note is about.
BUFFERS = {
    "VERA": ({"r": 5}, r"vera_[AB]"),
    "PVERA": ({"r": 5}, r"pvera_[AB]"),
    "RANDLORA": ({"r": 5}, r"randlora_[AB]"),
    "FROD": ({"progressbar": False}, r"frod_[UV]"),
    "UNILORA": ({"r": 3}, r"unilora_(indices|scales)_[AB]"),
    "TINYLORA": ({"r": 3, "u": 7}, r"tinylora_[ABP]"),
}


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "whisper"])
@pytest.mark.parametrize("peft_type", BUFFERS)
def test_what_the_total_leaves_out_is_what_the_live_model_holds_as_buffers(peft_type, family):
    values, names = BUFFERS[peft_type]
    values = {**values, "target_modules": "all-linear", "task_type": task_of(family)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(peft_type)](**values)
        live = peft.get_peft_model(copy.deepcopy(base(family)), config)
    held = sum(b.numel() for name, b in live.named_buffers() if re.search(names, name))
    (note,) = peft_change(blueprint(family), AdapterConfig(peft_type, **values)).notes
    assert f": {held:,} frozen numbers held as buffers" in note


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, None])
def test_whole_numbers_are_whole(value):
    with pytest.raises(ModelError, match=r"VERA: r is .*; set it to a whole number of 1 or more"):
        whole(AdapterConfig("VERA", r=value), "r")


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", True, None])
def test_fractions_lie_between_0_and_1(value):
    with pytest.raises(
        ModelError, match=r"FROD: sparse_rate is .*; set it to a number from 0 to 1"
    ):
        fraction(AdapterConfig("FROD", sparse_rate=value), "sparse_rate")


def test_words_are_known():
    with pytest.raises(ModelError, match=r"GLORA: config_C is 'big'; set it to one of lora, none"):
        one_of(AdapterConfig("GLORA", config_C="big"), "config_C", ("lora", "none"))


def test_ranks_are_those_of_the_first_pattern_that_matches():
    q, v = (blueprint("llama").by_name[f"model.layers.0.self_attn.{n}_proj"] for n in "qv")
    config = AdapterConfig("DELORA", r=8, rank_pattern={"q_proj": 2, "layers.0.*": 3})
    assert (rank_of(config, q), rank_of(config, v)) == (2, 3)
    assert rank_of(AdapterConfig("DELORA", r=8, rank_pattern=None), q) == 8


@pytest.mark.parametrize(
    ("peft_type", "key", "value"),
    [
        ("LORA", "r", None),
        ("LORA", "r", "8"),
        ("LORA", "bias", True),
        ("LORA", "bias", None),
        ("LORA", "target_modules", 5),
        ("LORA", "exclude_modules", 5),
        ("LORA", "modules_to_save", 5),
        ("LORA", "modules_to_save", "lm_head"),
        ("LORA", "target_parameters", "gate_up_proj"),
        ("LORA", "layers_to_transform", 1.5),
        ("LORA", "rank_pattern", ["q_proj"]),
        ("LORA", "layer_replication", 3),
        ("ADALORA", "tinit", None),
        ("PREFIX_TUNING", "encoder_hidden_size", "wide"),
        ("PROMPT_TUNING", "num_transformer_submodules", "two"),
        ("PROMPT_TUNING", "num_virtual_tokens", "ten"),
        ("LOKR", "decompose_factor", None),
        ("OFT", "oft_block_size", "32"),
        ("MISS", "init_weights", ["bat"]),
        ("WAVEFT", "wavelet_family", {"db1": 1}),
        ("ADALORA", "total_step", "100"),
        ("SHADOW", "update_hidden_size", "4"),
        ("LORA", "layers_to_transform", [[0]]),
        ("LORA", "layers_to_transform", ["0"]),
        ("LORA", "exclude_modules", [["q_proj"]]),
        ("LORA", "target_modules", [5]),
        ("LORA", "layers_pattern", [None]),
        ("LORA", "modules_to_save", [5]),
        ("LORA", "task_type", ["CAUSAL_LM"]),
        ("CPT", "cpt_token_ids", 5),
        ("CPT", "cpt_mask", ["a"]),
        ("TRAINABLE_TOKENS", "token_indices", None),
        ("TRAINABLE_TOKENS", "token_indices", ["a"]),
    ],
)
def test_a_value_of_another_kind_is_refused_in_a_line(peft_type, key, value):
    config = AdapterConfig(peft_type, **{"target_modules": "all-linear", key: value})
    with pytest.raises(ModelError, match=f"{key} is .*; expected "):
        peft_change(blueprint("qwen3_moe"), config)


@pytest.mark.parametrize(
    ("peft_type", "values"),
    [
        ("LORA", {"trainable_token_indices": {"embed_tokens": ["a"]}}),
        ("LORA", {"trainable_token_indices": {"embed_tokns": [1]}}),
        ("LORA", {"task_type": "CAUSAL"}),
        ("LORA", {"layer_replication": [["a", "b"]]}),
        ("LORA", {"layer_replication": [[0, 1.5]]}),
        ("LORA", {"layer_replication": [[0, 9]]}),
        ("LORA", {"layer_replication": [[0]]}),
        ("LORA", {"layer_replication": [None]}),
        ("PROMPT_TUNING", {"num_transformer_submodules": -1}),
        ("PROMPT_TUNING", {"token_dim": -8}),
        ("PREFIX_TUNING", {"prefix_projection": True, "encoder_hidden_size": -3}),
        ("P_TUNING", {"encoder_hidden_size": -3}),
    ],
)
def test_what_peft_cannot_make_is_refused(peft_type, values):
    needed = {"num_virtual_tokens": 4} if "TUNING" in peft_type else {"target_modules": ["q_proj"]}
    assert not agree("llama", peft_type, {**needed, **values})


def test_a_stack_that_is_no_list_is_not_used_again():
    """PEFT takes lists of layers; a module named layers may be another."""
    model = nn.Module()
    model.layers = nn.ModuleDict({"first": nn.Linear(4, 4), "last": nn.Linear(4, 4)})
    values = {"target_modules": ["first"], "layer_replication": [[0, 1]]}
    assert not agree_on(model, "LORA", values)


def test_a_name_of_tokens_that_matches_nothing_is_refused_with_those_near_it():
    values = {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokns": [1]}}
    with pytest.raises(ModelError, match=r"matches no module \(near it: embed_tokens\); the input"):
        peft_change(blueprint("llama"), AdapterConfig("LORA", **values))


@pytest.mark.parametrize("tokens", [None, 3])
def test_tokens_that_are_no_list_are_refused(tokens):
    """PEFT takes them for an index into the embedding, and then fails in its first step."""
    values = {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": tokens}}
    with pytest.raises(ModelError, match=f"has {tokens} for model.embed_tokens; expected a list"):
        peft_change(blueprint("llama"), AdapterConfig("LORA", **values))


@pytest.mark.parametrize(
    ("peft_type", "key", "value"),
    [("LOKR", "decompose_factor", 1.5), ("SHADOW", "update_hidden_size", -1)],
)
def test_sizes_that_are_fractions_or_negative_are_refused(peft_type, key, value):
    with pytest.raises(ModelError, match=f"{key} is {value}; set it to a whole number"):
        peft_change(blueprint("llama"), AdapterConfig(peft_type, **{key: value}))
