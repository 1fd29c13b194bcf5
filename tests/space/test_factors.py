from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from torch import nn

from tunemath.errors import ModelError
from tunemath.space.factors import lora_factors


class Small(nn.Module):
    """A layer of each kind that LoRA factors."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.first = nn.Linear(6, 9)
        self.last = nn.Linear(9, 4)
        self.image = nn.Conv2d(3, 8, (2, 3))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(self.words(ids)))


CONFIGS = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {"first": 2}, "alpha_pattern": {"last": 7, "ima.*": 3}},
    "half": {"use_rslora": False},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_factors_and_spectra_are_those_of_the_live_model(case, tmp_path):
    torch.manual_seed(0)
    targets = ["words", "first", "last", "image"]
    model = get_peft_model(
        Small(), LoraConfig(r=4, lora_alpha=6, target_modules=targets, **CONFIGS[case])
    )
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight)
    dtype = torch.bfloat16 if case == "half" else torch.float32
    model.to(dtype).save_pretrained(tmp_path)
    live = PeftModel.from_pretrained(Small(), tmp_path)
    found = {factors.name: factors for factors in lora_factors(tmp_path)}
    assert found.keys() == set(targets)
    for name, factors in found.items():
        layer: Any = live.get_submodule(f"base_model.model.{name}")
        delta = layer.get_delta_weight("default")
        delta = (delta.T if name == "words" else delta.flatten(1)).detach()
        formed = factors.scale * factors.B @ factors.A
        np.testing.assert_allclose(formed, delta.numpy(), rtol=1e-5, atol=1e-6)
        assert factors.shape == tuple(delta.shape)
        values = torch.linalg.svdvals(torch.from_numpy(formed).double()).numpy()
        mine = factors.singular_values()
        np.testing.assert_allclose(mine, values[: len(mine)], rtol=1e-6, atol=1e-6 * values[0])


def saved(folder, **values):
    torch.manual_seed(0)
    get_peft_model(Small(), LoraConfig(r=2, target_modules=["first"])).save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "VERA"}, "it is a VERA adapter"),
        ({"use_dora": True}, "DoRA scales"),
        ({"init_lora_weights": "pissa_niter_4"}, "took the first B A away from the base"),
        ({"target_parameters": ["experts.up"]}, "several matrices in one"),
        ({"kasa_config": {}}, "kasa_config is set"),
        ({"use_bdlora": {"target_modules_bd_a": ["first"]}}, "use_bdlora is set"),
        ({"monteclora_config": {"num_samples": 2}}, "monteclora_config is set"),
        ({"arrow_config": {}}, "arrow_config is set"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
        ({"use_qalora": True}, "use_qalora is set"),
    ],
)
def test_updates_that_are_no_product_are_refused(values, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        list(lora_factors(saved(tmp_path, **values)))


def test_a_factor_without_its_partner_is_an_error(tmp_path):
    path = saved(tmp_path) / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: one for name, one in tensors.items() if "lora_A" in name}, path)
    with pytest.raises(ModelError, match=r"lora_A.weight without .*lora_B.weight"):
        list(lora_factors(tmp_path))
    save_file({"other": np.zeros(3, np.float32)}, path)
    with pytest.raises(ModelError, match="has no lora_A; it holds other"):
        list(lora_factors(tmp_path))
    save_file({name: one[:, :-1] if "lora_B" in name else one for name, one in tensors.items()},
              path)  # fmt: skip
    with pytest.raises(ModelError, match="do not go together"):
        list(lora_factors(tmp_path))
