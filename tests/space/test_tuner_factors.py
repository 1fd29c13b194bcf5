"""The factors of saved adapters, against the weights that PEFT itself merges."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from tunemath.space.tuner_factors import Kronecker, saved_factors

GPT2 = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 20)
        self.last = nn.Linear(20, 9)
        self.image = nn.Conv2d(4, 8, (2, 3))
        self.point = nn.Conv2d(4, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x))


LINEAR, ALL = ["first", "last"], ["first", "last", "image", "point"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LORA", {"target_modules": ALL, "r": 3, "alpha_pattern": {"last": 5}}),
    "rslora": ("LORA", {"target_modules": LINEAR, "r": 4, "use_rslora": True}),
    "adalora": ("ADALORA", {"target_modules": LINEAR, "init_r": 4, "total_step": 9}),
    "adalora, cut": (
        "ADALORA",
        {"target_modules": LINEAR, "init_r": 4, "total_step": 9, "lora_alpha": 3},
    ),
    "vera": ("VERA", {"target_modules": LINEAR, "r": 5}),
    "delora": ("DELORA", {"target_modules": LINEAR, "r": 3, "rank_pattern": {"last": 2}}),
    "loha": (
        "LOHA",
        {"target_modules": ALL, "r": 2, "alpha": 6, "rank_pattern": {"last": 3}},
    ),
    "lokr": ("LOKR", {"target_modules": ALL, "r": 2, "alpha": 5, "rank_pattern": {"last": 1}}),
    "lokr, both": (
        "LOKR",
        {"target_modules": LINEAR, "r": 1, "decompose_both": True, "decompose_factor": 4},
    ),
    "lokr, whole": ("LOKR", {"target_modules": LINEAR, "r": 30, "alpha": 7}),
}


def saved(folder: Path, model: nn.Module, kind: str, values: dict[str, Any]) -> Path:
    """Save an adapter whose trained values are all random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)](**values)
        wrapped = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn_like(parameter)
            if "delora_B" in name:  # under the least norm that DeLoRA divides by
                parameter.data[:, 0] *= 1e-6
    wrapped.save_pretrained(folder)
    return folder


def merged_differences(base: nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """Return what PEFT's own merge adds to each weight, in float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped: Any = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).double()
        merged = wrapped.merge_and_unload()
    before = dict(base.double().named_parameters())
    return {
        name.removesuffix(".weight"): (after - before[name]).detach().flatten(1)
        for name, after in merged.named_parameters()
        if after.dim() > 1 and not torch.equal(after, before[name])
    }


def hold(folder: Path, base: nn.Module) -> None:
    """Hold values, forms and directions against the merged difference."""
    expected = merged_differences(base, folder)
    found = saved_factors(folder)
    assert found is not None
    assert not found.others
    weights = dict(base.named_parameters())
    updates = {
        u.name: u for u in found.updates(lambda name: tuple(weights[f"{name}.weight"].shape))
    }
    assert updates.keys() == expected.keys()
    for name, update in updates.items():
        delta = expected[name].numpy()
        values = np.linalg.svd(delta, compute_uv=False)
        mine = update.singular_values()
        assert len(mine) <= update.rank
        rest = np.zeros(len(values))
        rest[: len(mine)] = mine
        np.testing.assert_allclose(rest, values, rtol=1e-6, atol=1e-7 * values[0])
        np.testing.assert_allclose(update.delta(), delta, rtol=1e-4, atol=1e-6 * values[0])
        left, right = update.directions(2)
        k = left.shape[1]
        np.testing.assert_allclose(left.T @ left, np.eye(k), atol=1e-10)
        np.testing.assert_allclose(right.T @ right, np.eye(k), atol=1e-10)
        np.testing.assert_allclose(
            left.T @ delta @ right, np.diag(values[:k]), atol=1e-6 * values[0]
        )


@pytest.mark.parametrize("case", CASES)
def test_values_forms_and_directions_are_those_that_peft_merges(case, tmp_path):
    torch.manual_seed(0)
    base = Small()
    kind, values = CASES[case]
    folder = saved(tmp_path, copy.deepcopy(base), kind, values)
    if case == "adalora, cut":
        cut_ranks(folder)
    hold(folder, base)


def cut_ranks(folder: Path) -> None:
    """Leave one module two of its four directions, as AdaLoRA does when it allots its budget."""
    path, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    ranks = {}
    for name in ("first", "last"):
        kept = [True, False, True, False] if name == "last" else [True] * 4
        key = f"base_model.model.{name}.lora_"
        for part in "AE":
            tensors[key + part] = tensors[key + part][kept].contiguous()
        tensors[f"{key}B"] = tensors[f"{key}B"][:, kept].contiguous()
        ranks[f"{name}.lora_E"] = kept
    save_file(tensors, weights, metadata={"format": "pt"})
    path.write_text(json.dumps({**json.loads(path.read_text()), "rank_pattern": ranks}))


@pytest.mark.parametrize(
    ("kind", "values"), [("LORA", {"r": 2}), ("ADALORA", {"total_step": 9}), ("VERA", {"r": 3})]
)
def test_a_weight_that_is_stored_the_other_way_round(kind, values, tmp_path):
    torch.manual_seed(0)
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=16, **GPT2))
    values = {**values, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    hold(saved(tmp_path, copy.deepcopy(base), kind, values), base)


def test_what_else_was_trained_is_named_and_what_has_no_factors_has_none(tmp_path):
    settings = {"target_modules": ["first"], "modules_to_save": ["last"], "bias": "lora_only"}
    found = saved_factors(saved(tmp_path / "lora", Small(), "LORA", settings))
    assert found is not None
    assert found.others.keys() == {"first.base_layer.bias", "last.weight", "last.bias"}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("LORA", {"use_dora": True}),
        ("IA3", {"feedforward_modules": []}),
        ("VERA", {"save_projection": False}),
    ]
    for place, (kind, more) in enumerate(cases):
        folder = saved(tmp_path / str(place), Small(), kind, {"target_modules": ["first"], **more})
        assert saved_factors(folder) is None


def test_a_kronecker_product_that_is_not_formed():
    rng = np.random.default_rng(0)
    product = Kronecker("", rng.normal(size=(3, 2)), rng.normal(size=(4, 5)), -2.0)
    formed = np.linalg.svd(product.delta(), compute_uv=False)
    assert product.shape == (12, 10)
    np.testing.assert_allclose(product.singular_values(), formed[:8], rtol=1e-6)
