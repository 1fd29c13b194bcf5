from __future__ import annotations

import dataclasses

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, agree_on, blueprint
from torch import nn

from tunemath.space.peft import AdapterConfig, peft_change, peft_ledger

ALL = {"target_modules": "all-linear"}
NO_CONVOLUTIONS = [family for family in FAMILIES if family not in ("vit", "whisper")]

# Each case: its settings, the families for which PEFT refuses them.
CASES = {
    "default": ({}, NO_DEFAULTS),
    "all-linear": (ALL, ()),
    "rank": ({**ALL, "r": 3, "hira_dropout": 0.1}, ()),
    "ranks": ({**ALL, "r": 3, "rank_pattern": {"q_proj": 5, ".*0.*": 7}}, ()),
    "embeddings": ({"target_modules": ["embed_tokens", "wte", "word_embeddings"]}, ("vit",)),
    "convolutions": ({"target_modules": ["conv1", "projection"]}, NO_CONVOLUTIONS),
    "layers": (
        {"target_modules": ["q_proj", "c_attn", "query"], "layers_to_transform": 1},
        ("phi3", "t5"),
    ),
    "layers-of-all": ({**ALL, "layers_to_transform": 1}, FAMILIES),
    "norms": ({"target_modules": ".*(norm|ln_1|LayerNorm|layer_norm)"}, FAMILIES),
    "no-rank": ({**ALL, "r": 0}, FAMILIES),
    "saved": ({**ALL, "modules_to_save": ["norm", "wpe"]}, ()),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "HIRA", values) == (family not in refused)


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(10, 6)
        self.line = nn.Conv1d(4, 6, 3)
        self.plane = nn.Conv2d(4, 6, (3, 5))
        self.space = nn.Conv3d(4, 6, 3)
        self.attend = nn.MultiheadAttention(8, 2)


@pytest.mark.parametrize("name", ["rows", "line", "plane", "space", "attend"])
def test_every_kind_of_layer_is_counted(name):
    assert agree_on(Layers(), "HIRA", {"target_modules": [name], "r": 2}) == (name != "attend")


def test_rank_patterns_count_for_quantised_layers_only():
    """As PEFT's dispatch has it: bnb.py takes the layer's rank, layer.py the configuration's."""
    config = AdapterConfig("HIRA", target_modules=["q_proj"], r=2, rank_pattern={"q_proj": 3})
    (note,) = peft_change(blueprint("llama"), config).notes
    assert "no notice of HiRA's rank_pattern" in note
    assert peft_ledger(blueprint("llama"), config).trainable == 2 * 2 * (32 + 32)
    packed = dataclasses.replace(blueprint("llama"), quantisation="bitsandbytes-4bit")
    assert peft_ledger(packed, config).trainable == 2 * 3 * (32 + 32)
