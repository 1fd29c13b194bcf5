"""The proof that what was saved, merged and read back is what was trained, and that it can fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraModel
from safetensors.torch import load_file, save_file
from small_models import make_rows

import tolerance
from tunemath.contract import ModelChoice
from tunemath.errors import RunError
from tunemath.runner.artefact import Probe, prove_artefact
from tunemath.runner.models import attach_adapter, load_base
from tunemath.runner.progress import silent
from tunemath.runner.resolve import resolve_model
from tunemath.space import LoraSpace

ROWS = make_rows(5)


@pytest.fixture
def trained(tiny_model, tmp_path):
    """A probe of a live model with a moved adapter, and how what was saved is held against it."""
    base = resolve_model(ModelChoice(id=str(tiny_model)))
    live = attach_adapter(
        load_base(base, torch.device("cpu"), torch.float32), LoraSpace(rank=4, alpha=8), 0
    )
    generator = torch.Generator().manual_seed(3)
    for name, parameter in live.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    live.eval().save_pretrained(adapter)
    Probe.of(live, ROWS).write(tmp_path / "probe.safetensors")
    width = live.config.intermediate_size
    del live

    def prove() -> dict[str, Any]:
        probe = Probe.read(tmp_path / "probe.safetensors")
        # two layers, no inner width above the configuration's
        bound = tolerance.network(probe.logits, layers=2, width=width)
        return {**prove_artefact(base, adapter, LoraSpace(), probe, merged, silent), "bound": bound}

    return prove, adapter


FORMS = ("adapter_vs_reloaded", "adapter_vs_merged", "adapter_vs_reloaded_merged")


def test_the_forms_of_a_sound_adapter_are_one_model(trained):
    prove, adapter = trained
    found = prove()
    assert found["positions"] == sum(sum(supervised) for _, supervised in ROWS)
    for form in FORMS:
        assert found[form]["max_logit_difference"] < found["bound"]
        assert abs(found[form]["kl"]) < 1e-6
    assert not adapter.with_name("merged").exists()


def rescale(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["lora_alpha"] *= 2
    (adapter / "adapter_config.json").write_text(json.dumps(config))


def zero_a_factor(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_B" in name)
    save_file({**tensors, name: torch.zeros_like(tensors[name])}, path)


@pytest.mark.parametrize("tamper", [rescale, zero_a_factor])
def test_an_adapter_changed_on_disk_differs(trained, tamper):
    prove, adapter = trained
    tamper(adapter)
    found = prove()
    for form in FORMS:
        assert found[form]["max_logit_difference"] > 10 * found["tolerance"]


def test_a_merge_that_adds_nothing_is_told(trained, monkeypatch):
    """`unload` forgets the adapter: the merged model is the base, and every form of it differs."""
    prove, _ = trained
    monkeypatch.setattr(LoraModel, "merge_and_unload", LoraModel.unload)
    found = prove()
    assert found["adapter_vs_reloaded"]["max_logit_difference"] < found["bound"]
    for form in FORMS[1:]:
        assert found[form]["max_logit_difference"] > 10 * found["tolerance"]
    assert max(abs(row["share"]) for row in found["weights"]["by_tensor"]) < 1e-3


def test_a_merged_model_that_is_damaged_as_it_is_written_is_told(trained, monkeypatch):
    import transformers

    write = transformers.PreTrainedModel.save_pretrained

    def damaged(self: Any, folder: Path, **options: Any) -> None:
        write(self, folder, **options)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.down_proj.weight"] += 0.05
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    prove, _ = trained
    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", damaged)
    found = prove()
    assert found["adapter_vs_merged"]["max_logit_difference"] < found["bound"]
    assert found["adapter_vs_reloaded_merged"]["max_logit_difference"] > 10 * found["tolerance"]
    apart = {row["name"]: row["apart"] for row in found["weights"]["by_tensor"]}
    assert max(apart, key=lambda name: apart[name]) == "model.layers.1.mlp.down_proj.weight"


def test_a_probe_reads_back_as_it_was_and_a_damaged_one_is_refused(tmp_path):
    probe = Probe([([5, 6, 7], [False, True, True])], torch.randn(2, 9))
    path = tmp_path / "probe.safetensors"
    probe.write(path)
    again = Probe.read(path)
    assert again.rows == probe.rows
    assert torch.equal(again.logits, probe.logits)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(RunError, match=r"probe\.safetensors is damaged .*--fresh"):
        Probe.read(path)
