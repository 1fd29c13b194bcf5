from __future__ import annotations

import pytest
from peft_models import FAMILIES, agree, agree_on, blueprint
from transformers import MistralConfig, MistralForCausalLM

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Builder
from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, peft_change

SOME = {"adapter_len": 3, "adapter_layers": 1}
KNOWN = ("llama", "gpt2")
UNKNOWN = tuple(family for family in FAMILIES if family not in KNOWN)

# Each case: its settings, the families for which PEFT refuses them.
CASES = {
    "top-layer": (SOME, UNKNOWN),
    "all-layers": ({"adapter_len": 7, "adapter_layers": 2}, UNKNOWN),
    "named": ({**SOME, "target_modules": "self_attn"}, (*UNKNOWN, "gpt2")),
    "not-attention": ({**SOME, "target_modules": "mlp"}, FAMILIES),
    "too-many": ({"adapter_len": 3, "adapter_layers": 3}, FAMILIES),
    "no-length": ({"adapter_layers": 1}, FAMILIES),
    "no-layers": ({"adapter_len": 3}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "ADAPTION_PROMPT", values) == (family not in refused)


def test_mistral_is_known_too():
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    assert agree_on(MistralForCausalLM(config), "ADAPTION_PROMPT", SOME)


def test_prompts_lie_in_the_top_layers():
    change = peft_change(blueprint("llama"), AdapterConfig("ADAPTION_PROMPT", **SOME))
    assert [each.name for each in change.shared] == ["model.layers.1.self_attn"]
    assert Ledger(blueprint("llama"), change).trainable == 3 * 32 + 1


def test_counts_are_those_of_the_paper():
    # Zhang et al. 2023, section 4.1: 1.2M parameters, 10 tokens in the top 30 layers of LLaMA 7B.
    builder = Builder()
    for layer in range(32):
        builder.linear(f"model.layers.{layer}.self_attn.q_proj", 4096, 4096)
    config = {"hidden_size": 4096}
    llama = Blueprint("llama", "LlamaForCausalLM", tuple(builder.modules), config)
    values = {"adapter_len": 10, "adapter_layers": 30}
    change = peft_change(llama, AdapterConfig("ADAPTION_PROMPT", **values))
    assert Ledger(llama, change).trainable == 1_228_830


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("qwen2", SOME, "does not know model type 'qwen2'; PEFT has it for llama, mistral, gpt2"),
        ("llama", {**SOME, "adapter_layers": 3}, "is 3, and the model has 2 modules named 'self_a"),
        ("llama", {**SOME, "target_modules": "mlp"}, "which is no attention .*it has no q_proj"),
    ],
)
def test_refusals_say_why(family, values, message):
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint(family), AdapterConfig("ADAPTION_PROMPT", **values))
