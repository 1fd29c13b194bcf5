"""The spectra of saved updates, against the singular values of the weights' own differences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from tunemath.contract import ModelChoice
from tunemath.runner.models import attach_adapter, load_adapter, load_base
from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.resolve import ResolvedModel, resolve_model
from tunemath.runner.spectra import update_spectrum
from tunemath.space import AdapterSpace, LoraSpace, UnfreezeSpace, UpdateSpace

CPU = torch.device("cpu"), torch.float32


def saved(base: ResolvedModel, folder: Path, space: UpdateSpace) -> Path:
    """Save an update whose trained values are all random."""
    model = attach_adapter(load_base(base, *CPU), space, 0)
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    with quiet_libraries():
        model.save_pretrained(folder)
    return folder


def differences(base: ResolvedModel, folder: Path) -> dict[str, tuple[np.ndarray, float]]:
    """Return ΔW of every matrix that the merged model has otherwise, and ‖W‖_F."""
    before: Any = load_base(base, *CPU)
    after: Any = load_adapter(load_base(base, *CPU), folder).merge_and_unload()
    found = {}
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert old.shape == new.shape
        if old.dim() == 2 and not torch.equal(old, new):
            delta = (new.double() - old.double()).detach().numpy()
            found[name.removesuffix(".weight")] = (delta, float(old.detach().double().norm()))
    return found


@pytest.mark.parametrize(
    "space",
    [
        LoraSpace(rank=3),
        LoraSpace(rank=80),  # more than some matrices have rows
        LoraSpace(method="dora", rank=3),
        UnfreezeSpace(method="full"),
    ],
    ids=["lora", "lora of high rank", "dora", "full"],
)
def test_the_singular_values_are_those_of_the_difference(tiny_model, tmp_path, space):
    base = resolve_model(ModelChoice(id=str(tiny_model)))
    folder = saved(base, tmp_path / "update", space)
    found, expected = update_spectrum(base, folder, space), differences(base, folder)
    assert {module["name"] for module in found["modules"]} == expected.keys()
    for module in found["modules"]:
        delta, norm = expected[module["name"]]
        values = np.linalg.svd(delta, compute_uv=False)
        shown = len(module["singular_values"])
        np.testing.assert_allclose(module["singular_values"], values[:shown], atol=2e-5)
        assert module["relative_norm"] == pytest.approx(np.linalg.norm(delta) / norm, rel=1e-4)
    json.dumps(found, allow_nan=False)


@pytest.fixture
def renamed(tmp_path) -> ResolvedModel:
    """GPT-NeoX, whose head is lm_head in the live model and embed_out in its files."""
    sizes = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 24}
    config = GPTNeoXConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "base")
    return resolve_model(ModelChoice(id=str(tmp_path / "base")))


def test_a_weight_that_its_file_calls_otherwise_has_its_norm(renamed, tmp_path):
    space = LoraSpace(rank=2, targets=["lm_head"])
    folder = saved(renamed, tmp_path / "update", space)
    (module,) = update_spectrum(renamed, folder, space)["modules"]
    delta, norm = differences(renamed, folder)["lm_head"]
    assert module["relative_norm"] == pytest.approx(np.linalg.norm(delta) / norm, rel=1e-4)


def test_embeddings_have_the_spectrum_of_their_difference(renamed, tmp_path):
    space = LoraSpace(rank=2, targets=["embed_in"])
    folder = saved(renamed, tmp_path / "update", space)
    (module,) = update_spectrum(renamed, folder, space)["modules"]
    delta, norm = differences(renamed, folder)[module["name"]]
    values = np.linalg.svd(delta, compute_uv=False)
    np.testing.assert_allclose(module["singular_values"], values[:2], atol=2e-5)
    assert module["relative_norm"] == pytest.approx(np.linalg.norm(delta) / norm, rel=1e-4)


def test_a_tied_head_has_the_norm_of_the_embedding(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    assert config["tie_word_embeddings"]
    base = resolve_model(ModelChoice(id=str(tmp_path / "base")))
    space = LoraSpace(rank=2, targets=["lm_head"])
    folder = saved(base, tmp_path / "update", space)
    (module,) = update_spectrum(base, folder, space)["modules"]
    weight: Any = load_base(base, *CPU).get_input_embeddings().weight
    assert module["relative_norm"] == pytest.approx(
        module["frobenius"] / float(weight.detach().double().norm()), rel=1e-6
    )


def test_an_update_that_changes_no_weight_says_why(tiny_model, tmp_path):
    base = resolve_model(ModelChoice(id=str(tiny_model)))
    space = AdapterSpace(method="adapter", bottleneck=2)
    found = update_spectrum(base, saved(base, tmp_path / "update", space), space)
    assert "no change of a weight" in found["skipped"]
    norms = UnfreezeSpace(method="layernorm")
    found = update_spectrum(base, saved(base, tmp_path / "norms", norms), norms)
    assert found["skipped"] == "no weight of two dimensions changed"
