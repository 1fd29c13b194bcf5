from __future__ import annotations

import pytest
from peft_models import FAMILIES, agree, agree_on, blueprint
from torch import nn

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Builder
from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, peft_change

NO_DEFAULTS = ("qwen3_moe", "mixtral", "phi3", "bert", "vit", "whisper")
NORMS = r".*(norm|ln_1|ln_2|ln_f|LayerNorm|layer_norm|layernorm_before)"
BLOCKS = r".*(layers?|h|block)\.1"
TIED = ["lm_head", "embed_tokens", "shared", "wte", "classifier", "proj_out"]
ROTARY = ("llama", "qwen2", "qwen3_moe", "gemma", "mixtral", "phi3", "t5")

# Each case: its settings, the families for which PEFT refuses them.
CASES = {
    "default": ({}, NO_DEFAULTS),
    "norms": ({"target_modules": NORMS}, ()),
    "excluded": (
        {"target_modules": NORMS, "exclude_modules": ["input_layernorm", "ln_1", "layer_norm"]},
        (),
    ),
    "all-linear": ({"target_modules": "all-linear"}, ()),
    "tied": ({"target_modules": TIED}, ("bert",)),
    "positions": ({"target_modules": ["embed_positions", "wpe", "embeddings"]}, ROTARY),
    "mixture": ({"target_modules": ["mlp"]}, ("t5", "bert", "whisper")),
    # T5's blocks hold a list named layer, whose second item is a part of them.
    "blocks": ({"target_modules": BLOCKS}, ("t5",)),
    "nothing": ({"target_modules": ["none"]}, FAMILIES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "LN_TUNING", values) == (family not in refused)


class Pair(nn.Module):
    """Two layers that share a weight, in a block that can be copied whole."""

    def __init__(self):
        super().__init__()
        self.block = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)})
        self.block["second"].weight = self.block["first"].weight
        self.apart = nn.Linear(4, 4)
        self.apart.weight = self.block["first"].weight


@pytest.mark.parametrize("names", [["block"], ["second"], ["apart"], ["first", "second"]])
def test_what_is_tied_within_a_copy_is_copied_once(names):
    assert agree_on(Pair(), "LN_TUNING", {"target_modules": names})


def test_counts_of_a_llama_are_those_of_its_norms():
    """Hand arithmetic for LLaMA-7B: two norms of 4096 in each of 32 layers, and the last."""
    build = Builder()
    for i in range(32):
        build.norm(f"model.layers.{i}.input_layernorm", 4096)
        build.norm(f"model.layers.{i}.post_attention_layernorm", 4096)
    build.norm("model.norm", 4096)
    model = Blueprint("llama", "LlamaForCausalLM", tuple(build.modules))
    change = peft_change(model, AdapterConfig("LN_TUNING"))
    assert Ledger(model, change).trainable == (2 * 32 + 1) * 4096


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["mlp", "down_proj"], r"targets model.layers.0.mlp and model.layers.0.mlp.down_proj"),
        (["none"], r"target_modules \['none'\] match no module"),
    ],
)
def test_targets_must_be_there_and_apart(names, message):
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint("llama"), AdapterConfig("LN_TUNING", target_modules=names))
