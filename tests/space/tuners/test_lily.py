from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, agree_on, blueprint
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear"}
PROJECTIONS = {"target_modules": r".*(proj|query|value|key|\.q|\.k|\.v|\.o|fc1)"}

# Each case: its settings, the families for which PEFT refuses them: GPT-2, of transformers' Conv1D.
CASES = {
    "default": ({}, (*NO_DEFAULTS, "gpt2")),
    "all-linear": ({**ALL, "r": 3}, ("gpt2",)),
    "stride": ({**ALL, "r": 3, "stride_A": 2, "num_B": 3}, ("gpt2",)),
    "pattern": ({**PROJECTIONS, "r": 3, "stride_A": 3}, ("gpt2",)),
    "layers": ({**ALL, "r": 3, "layers_to_transform": 1}, ("gpt2",)),
    "lost-pattern": ({**ALL, "layers_pattern": "layers"}, FAMILIES),
    "no-rank": ({**ALL, "r": 0}, FAMILIES),
    "no-stride": ({**ALL, "stride_A": 0}, FAMILIES),
    "one-b": ({**ALL, "num_B": 1}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "LILY", values) == (family not in refused)


def _llama(layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("stride", [1, 2, 3, 7])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj", "down_proj"], r".*k_proj"])
def test_layers_share_by_name(targets, stride):
    values = {"r": 3, "stride_A": stride, "target_modules": targets}
    assert agree_on(_llama(5), "LILY", values)


def test_many_full_names_are_shortened_so_that_layers_share():
    names = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(7) for p in "qkv"]
    assert agree_on(_llama(7), "LILY", {"r": 3, "target_modules": names})
    assert agree_on(_llama(7), "LILY", {"r": 3, "target_modules": names[:19]})
    # Layer 6 is not asked for, so the names must say which layer.
    assert agree_on(_llama(8), "LILY", {"r": 3, "target_modules": names})


def test_names_that_end_alike_are_refused_where_the_count_would_be_open():
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    values = {"r": 3, "target_modules": ["o", "wo"]}
    # Both end the names of the layers wo, which differ from o in shape here, and there don't.
    assert agree_on(T5ForConditionalGeneration(T5Config(**sizes, d_ff=48)), "LILY", values)
    square = blueprint_of(T5ForConditionalGeneration(T5Config(**sizes, d_ff=32)))
    with pytest.raises(ModelError, match="target_modules has 'o' and 'wo', which end the names"):
        peft_change(square, AdapterConfig("LILY", **values))


def test_one_b_cannot_be_routed():
    config = AdapterConfig("LILY", num_B=1)
    with pytest.raises(ModelError, match="num_B is 1; set it to a whole number of 2 or more"):
        peft_change(blueprint("llama"), config)
