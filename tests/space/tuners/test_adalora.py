from __future__ import annotations

import pytest
from peft_models import FAMILIES, NO_DEFAULTS, agree, agree_on, blueprint
from torch import nn

from tunemath.errors import ModelError
from tunemath.space.peft import AdapterConfig, peft_change

ALL = {"target_modules": "all-linear", "total_step": 10}
NO_STACK = ("gpt2", "t5", "vit", "whisper")

# Each case: its settings, the families for which PEFT refuses them.
CASES = {
    "no-steps": ({}, FAMILIES),
    "default": ({"total_step": 10}, (*NO_DEFAULTS, "mixtral")),
    "all-linear": (ALL, ()),
    "rank": ({**ALL, "init_r": 3, "target_r": 2, "r": 5, "bias": "all"}, ()),
    "rank-0": ({**ALL, "init_r": 0, "bias": "lora_only"}, ()),
    "ranks": ({**ALL, "rank_pattern": {"q_proj": 3}}, ()),
    "expression": ({**ALL, "target_modules": r".*(q_proj|query|\.q|c_attn)"}, ("phi3",)),
    "embeddings": ({**ALL, "target_modules": ["embed_tokens", "wte", "word_embeddings"]}, FAMILIES),
    "dora": ({**ALL, "use_dora": True}, FAMILIES),
    "saved": ({**ALL, "modules_to_save": ["norm", "wpe"]}, ()),
    "tokens": ({**ALL, "trainable_token_indices": [1, 2]}, ("vit",)),
    "replicated": ({**ALL, "layer_replication": [[0, 2], [0, 1]]}, NO_STACK),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_live_model(family, case):
    values, refused = CASES[case]
    assert agree(family, "ADALORA", values) == (family not in refused)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Conv1d(4, 6, 3)
        self.plane = nn.Conv2d(4, 6, (3, 5))


@pytest.mark.parametrize("name", ["line", "plane"])
def test_only_convolutions_over_two_dimensions_are_counted(name):
    values = {"target_modules": [name], "total_step": 10}
    assert agree_on(Convolutions(), "ADALORA", values) == (name == "plane")


def test_the_rank_itself_is_a_frozen_number_of_each_layer():
    config = AdapterConfig("ADALORA", init_r=3, target_modules=["q_proj"], total_step=10)
    change = peft_change(blueprint("llama"), config)
    (group,) = change.groups
    assert group.trainable == 3 * (32 + 32 + 1)
    assert sum(part.parameters for part in group.parts) == group.trainable + 1
    assert change.notes == ("PEFT's total has the rank itself, a number for each of 2 layers",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "total_step is None; set it to the steps of the run"),
        ({"total_step": 10, "tinit": 6, "tfinal": 4}, "leave none of 10 steps to cut ranks in"),
        ({"total_step": 10, "orth_reg_weight": -1}, "orth_reg_weight is -1; set it to 0 or more"),
        ({"total_step": 10, "init_r": -1}, "init_r is -1"),
        ({"total_step": 10, "loftq_config": {"loftq_bits": 4}}, "loftq_config is set"),
        ({"total_step": 10, "target_parameters": ["norm.weight"]}, "leave them out"),
    ],
)
def test_refusals_say_what_was_given_and_what_to_do(values, message):
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint("llama"), AdapterConfig("ADALORA", **values))
