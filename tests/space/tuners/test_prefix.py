from __future__ import annotations

import pytest
from peft_models import FAMILIES, agree, agree_on, blueprint
from transformers import DistilBertConfig, DistilBertModel, OPTConfig, OPTForCausalLM

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint
from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, peft_change

N = {"num_virtual_tokens": 5}
PROJECTED = {**N, "prefix_projection": True}
SETTINGS = {"token_dim": 16, "num_layers": 3, "num_attention_heads": 2}

# Each case: its type and settings, the families for which PEFT refuses them. A ViT has no words.
CASES = {
    "prefix": ("PREFIX_TUNING", N, ("vit",)),
    "prefix-zero": ("PREFIX_TUNING", {**N, "init_weights": "zero"}, ("vit",)),
    "prefix-sizes": ("PREFIX_TUNING", {**N, **SETTINGS}, ("vit",)),
    "prefix-projected": ("PREFIX_TUNING", PROJECTED, ("vit",)),
    "prefix-hidden": ("PREFIX_TUNING", {**PROJECTED, "encoder_hidden_size": 24}, ("vit",)),
    "prefix-no-tokens": ("PREFIX_TUNING", {}, FAMILIES),
    "cartridge": ("CARTRIDGE", N, ("vit",)),
    "cartridge-free": ("CARTRIDGE", {**N, "num_frozen_tokens": 0}, ("vit",)),
    "cartridge-frozen": ("CARTRIDGE", {**N, "num_frozen_tokens": 5}, ("vit",)),
    "cartridge-too-many": ("CARTRIDGE", {**N, "num_frozen_tokens": 6}, FAMILIES),
    "cartridge-negative": ("CARTRIDGE", {**N, "num_frozen_tokens": -1}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    peft_type, values, refused = CASES[case]
    assert agree(family, peft_type, values) == (family not in refused)


def test_sizes_that_peft_does_not_find_must_be_given():
    values = {**N, "task_type": "FEATURE_EXTRACTION"}
    model = DistilBertModel(DistilBertConfig(vocab_size=64, dim=32, n_heads=4, n_layers=2))
    assert not agree_on(model, "PREFIX_TUNING", values)
    given = {**values, "token_dim": 32, "num_attention_heads": 4}
    assert agree_on(model, "PREFIX_TUNING", given)


def test_embeddings_may_be_narrower_than_the_model():
    config = OPTConfig(
        vocab_size=64, hidden_size=32, word_embed_proj_dim=16, ffn_dim=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=32,
    )  # fmt: skip
    model = OPTForCausalLM(config)
    for peft_type in ("PREFIX_TUNING", "CARTRIDGE", "PROMPT_TUNING"):
        assert agree_on(model, peft_type, {**N, "task_type": "CAUSAL_LM"})


def _counted(model: dict, **values) -> int:
    base = Blueprint("other", "Other", (), {"vocab_size": 64, **model})
    config = AdapterConfig("PREFIX_TUNING", task_type="CAUSAL_LM", **N, **values)
    return Ledger(base, peft_change(base, config)).trainable


def test_where_layers_differ_the_widest_heads_count():
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes["num_key_value_heads"] = 2
    assert _counted(sizes) == 2 * 3 * 5 * 2 * 16
    assert _counted({**sizes, "head_dim": 8}) == 2 * 3 * 5 * 2 * 8
    assert _counted({**sizes, "global_head_dim": 32}) == 2 * 3 * 5 * 2 * 32
    both = {**sizes, "global_head_dim": 32, "num_global_key_value_heads": 1}
    assert _counted(both) == 2 * 3 * 5 * 1 * 32
    layers = {"full_attention": {"head_dim": 32, "num_key_value_heads": 1}, "sliding": {}}
    assert _counted({**sizes, "head_dim": 8, "per_layer_config": layers}) == 2 * 3 * 5 * 1 * 32


def test_headers_alone_do_when_the_sizes_are_given():
    base = Blueprint("", "", ())
    values = {"task_type": "CAUSAL_LM", "token_dim": 64, "num_layers": 3, "num_attention_heads": 4}
    change = peft_change(base, AdapterConfig("PREFIX_TUNING", **N, **values))
    assert Ledger(base, change).trainable == 2 * 3 * 5 * 64


def test_the_language_part_of_a_model_of_several_kinds_counts():
    text = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 8}
    assert _counted({"text_config": text, "hidden_size": 16}) == 2 * 3 * 5 * 64


def test_counts_are_those_of_the_paper():
    # Li and Liang 2021, section 1: 250K parameters for table-to-text, 0.1 % of GPT-2 medium; its
    # E2E prefix has 5 tokens (table 5).
    model = {"n_embd": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 50_257}
    assert _counted(model) == 245_760


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({}, "num_layers is None, and of num_hidden_layers, .* none that PEFT could take"),
        ({"n_layer": 2}, "token_dim is None, and of hidden_size, n_embd, d_model"),
        ({"n_layer": 2, "d_model": 8, "n_heads": 2}, "set num_attention_heads to a whole number"),
    ],
)
def test_refusals_say_what_to_set(model, message):
    with pytest.raises(ModelError, match=message):
        _counted(model)


def test_no_more_tokens_are_frozen_than_there_are():
    config = AdapterConfig("CARTRIDGE", **N, task_type="CAUSAL_LM", num_frozen_tokens=6)
    with pytest.raises(ModelError, match="num_frozen_tokens is 6 of num_virtual_tokens 5"):
        peft_change(blueprint("llama"), config)
