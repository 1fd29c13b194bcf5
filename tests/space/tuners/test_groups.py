from __future__ import annotations

import dataclasses

import peft
import pytest
import torch
from peft_models import agree_on
from torch import nn

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.space.peft import AdapterConfig, peft_change


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair = nn.Conv2d(8, 12, 3, groups=2)
        self.depth = nn.Conv2d(8, 8, 3, groups=8)
        self.point = nn.Conv2d(8, 16, 1, groups=4, bias=False)
        self.line = nn.Conv1d(8, 12, 3, groups=4)
        self.space = nn.Conv3d(8, 12, 3, groups=2)
        self.channel = nn.Conv2d(1, 8, 3)
        self.back = nn.ConvTranspose2d(8, 12, 3)


LAYERS = ("pair", "depth", "point", "line", "space", "channel", "back")
FLAT = ("line", "space")  # convolutions over one or three dimensions
IN_GROUPS = ("pair", "depth", "point", "line", "space")
EFFECTIVE = {"use_effective_conv2d": True, "r": 3}

# Each case: the tuner type, its settings, the layers for which PEFT refuses them.
CASES = {
    "lora": ("LORA", {"r": 8}, ()),
    "lora-indivisible": ("LORA", {"r": 6}, ("depth", "point", "line")),
    "lora-dora": ("LORA", {"r": 8, "use_dora": True}, ()),
    "lora-bias": ("LORA", {"r": 8, "lora_bias": True, "bias": "lora_only"}, ()),
    "adalora": ("ADALORA", {"init_r": 3, "total_step": 10}, FLAT),
    "hira": ("HIRA", {"r": 8}, IN_GROUPS),
    "hra": ("HRA", {"r": 4}, (*IN_GROUPS, *FLAT)),
    "boft": ("BOFT", {"boft_block_size": 1}, (*IN_GROUPS, *FLAT)),
    "oft": ("OFT", {"oft_block_size": 4}, FLAT),
    "oft-number": ("OFT", {"oft_block_size": 0, "r": 3}, FLAT),
    "ia3": ("IA3", {"feedforward_modules": []}, ("line",)),
    "ia3-inputs": ("IA3", {"feedforward_modules": ".*"}, ("line",)),
    "loha": ("LOHA", {"r": 3}, ("space",)),
    "loha-effective": ("LOHA", EFFECTIVE, ("space",)),
    "lokr": ("LOKR", {"r": 2, "decompose_both": True}, ("space",)),
    "lokr-effective": ("LOKR", EFFECTIVE, ("space",)),
}


@pytest.fixture(autouse=True)
def extension(monkeypatch):
    """PEFT without its CUDA extension, which it would try to compile for every layer of BOFT."""
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: None)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layer", LAYERS)
def test_counts_are_those_of_the_live_model(layer, case):
    peft_type, values, refused = CASES[case]
    counted = agree_on(Grouped(), peft_type, {"target_modules": [layer], **values})
    assert counted == (layer not in (*refused, "back"))


def test_the_groups_are_those_of_the_layer():
    groups = {module.name: module.groups for module in blueprint_of(Grouped()).modules}
    assert groups == {
        "pair": 2, "depth": 8, "point": 4, "line": 4, "space": 2, "channel": 1, "back": 1,
    }  # fmt: skip


@pytest.mark.parametrize("peft_type", ["LORA", "HIRA", "ADALORA", "OFT", "BOFT", "HRA"])
def test_groups_that_a_shape_does_not_tell_are_asked_for(peft_type):
    """A weight (C, 1, *kernel) is over one channel or depthwise: headers alone don't say which."""
    model = blueprint_of(Grouped())
    unknown = tuple(module._replace(groups=None) for module in model.modules)
    config = AdapterConfig(peft_type, target_modules=["depth"], total_step=1)
    with pytest.raises(ModelError, match=r"one channel or depthwise, .* give the model's config"):
        peft_change(dataclasses.replace(model, modules=unknown), config)


def test_an_adapter_that_fails_in_its_first_step_is_noted():
    config = AdapterConfig("ADALORA", target_modules=["pair"], total_step=10)
    note, _ = peft_change(blueprint_of(Grouped()), config).notes
    assert note.startswith("pair is a convolution of 2 groups: PEFT makes the adapter")
    live = peft.get_peft_model(
        Grouped(), peft.AdaLoraConfig(target_modules=["pair"], total_step=10)
    )
    with pytest.raises(RuntimeError, match="shape"):
        live.base_model.model.pair(torch.zeros(1, 8, 5, 5))


@pytest.mark.parametrize(
    ("peft_type", "values", "message"),
    [
        ("LORA", {"r": 3}, "r is 3, and pair is a convolution of 2 groups; set r to a multiple"),
        ("HIRA", {}, "HIRA can't adapt a convolution of groups; that of pair has 2"),
    ],
)
def test_refusals_say_why(peft_type, values, message):
    config = AdapterConfig(peft_type, target_modules=["pair"], **values)
    with pytest.raises(ModelError, match=message):
        peft_change(blueprint_of(Grouped()), config)
