"""What the probes say of a sound model, and of one that was tampered with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_models import PAD, log_softmax_of, make_llama, make_rows, with_adapter

import tolerance
from tunemath.contract import ModelChoice
from tunemath.runner import probes
from tunemath.runner.models import attach_adapter, load_base
from tunemath.runner.resolve import resolve_model
from tunemath.space import LoraSpace

ROWS = make_rows(5)


def test_answer_logits_are_those_that_predict_supervised_tokens():
    model = make_llama()
    found = probes.answer_logits(model, ROWS, PAD).log_softmax(-1).double()
    expected = [
        log_softmax_of(model, ids)[place - 1]
        for ids, supervised in ROWS
        for place in range(1, len(ids))
        if supervised[place]
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_a_fresh_adapter_moves_no_logit_and_a_moved_one_does():
    still = probes.identity(with_adapter(make_llama(), moved=False), ROWS, PAD)
    assert still == {
        "max_logit_difference": 0.0,
        "kl": pytest.approx(0.0, abs=1e-6),
        "moves_by_nature": False,
        "positions": sum(sum(supervised) for _, supervised in ROWS),
    }
    assert probes.identity(with_adapter(make_llama()), ROWS, PAD)["max_logit_difference"] > 0.01


def test_difference_is_the_largest_gap_and_the_mean_kl():
    reference = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    other = reference.clone()
    other[1, 3] -= 2.5
    p, q = other.double().log_softmax(-1), reference.double().log_softmax(-1)
    assert probes.difference(reference, other) == {
        "max_logit_difference": pytest.approx(2.5),
        "kl": pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-5),
    }


def touch(model, part: str) -> str:
    name, parameter = next((n, p) for n, p in model.named_parameters() if part in n)
    with torch.no_grad():
        parameter.add_(1e-3)
    return name


def test_compare_tensors_names_what_should_not_have_moved_and_what_should_have():
    model = with_adapter(make_llama())
    before = probes.tensor_hashes(model)
    moved, changed = touch(model, "lora_A"), touch(model, "embed_tokens")
    found = probes.compare_tensors(before, probes.tensor_hashes(model))
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(found["unmoved"]) == trainable - {moved}
    assert (found["trainable"], found["moved"]) == (len(trainable), 1)
    assert found["frozen_changed"] == [changed]
    assert found["names_changed"] == []


def test_compare_tensors_sees_one_changed_bit_and_buffers():
    model = with_adapter(make_llama())
    before = probes.tensor_hashes(model)
    weight = model.get_base_model().model.norm.weight
    with torch.no_grad():
        weight[0] = torch.nextafter(weight[0], torch.tensor(9.0, dtype=weight.dtype))
    model.get_base_model().model.rotary_emb.inv_freq[0] += 1
    found = probes.compare_tensors(before, probes.tensor_hashes(model))
    assert sorted(name.rpartition(".")[2] for name in found["frozen_changed"]) == [
        "inv_freq",
        "weight",
    ]


def test_compare_tensors_names_a_tensor_that_vanished():
    before = {"a": (True, "1"), "b": (False, "2")}
    after = {"a": (True, "9"), "b": (False, "2"), "c": (False, "3")}
    assert probes.compare_tensors(before, after)["names_changed"] == ["c"]
    assert probes.compare_tensors(after, before)["names_changed"] == ["c"]


# --- the artefact probe


@pytest.fixture
def trained(tiny_model, tmp_path):
    """A live model with a moved adapter, and what the probe asks of a training job."""
    from types import SimpleNamespace

    base = resolve_model(ModelChoice(id=str(tiny_model)))
    live = attach_adapter(
        load_base(base, torch.device("cpu"), torch.float32), LoraSpace(rank=4, alpha=8), 0
    )
    generator = torch.Generator().manual_seed(3)
    for name, parameter in live.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    adapter = tmp_path / "adapter"
    live.eval().save_pretrained(adapter)
    return live, SimpleNamespace(
        pad=2,
        model=base,
        adapter=adapter,
        folder=tmp_path / "checkpoints",
        contract=SimpleNamespace(space=LoraSpace()),
    )


FORMS = ("adapter_vs_reloaded", "adapter_vs_merged", "adapter_vs_reloaded_merged")


def test_the_forms_of_a_sound_adapter_are_one_model(trained):
    live, job = trained
    found = probes.artefact(live, job, ROWS)
    assert found["positions"] == sum(sum(supervised) for _, supervised in ROWS)
    for form in FORMS:
        assert found[form]["max_logit_difference"] < _bound(live)
        assert abs(found[form]["kl"]) < 1e-6
    assert not (job.folder / "merged-probe").exists()


def _bound(model) -> float:
    """Of the tiny model's logits on the rows: two layers, no inner width above its config's."""
    found = probes.answer_logits(model, ROWS, 2)
    return tolerance.network(found, layers=2, width=model.config.intermediate_size)


def rescale(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["lora_alpha"] *= 2
    (adapter / "adapter_config.json").write_text(json.dumps(config))


def zero_a_factor(adapter: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_B" in name)
    save_file({**tensors, name: torch.zeros_like(tensors[name])}, path)


@pytest.mark.parametrize("tamper", [rescale, zero_a_factor])
def test_an_adapter_changed_on_disk_differs(trained, tamper):
    live, job = trained
    tamper(job.adapter)
    found = probes.artefact(live, job, ROWS)
    for form in FORMS:
        assert found[form]["max_logit_difference"] > 10 * found["tolerance"]
