"""Adapters in memory: PEFT's own count and scale beside ours, and names that match nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer

from tunemath.contract import FineTune, ModelChoice
from tunemath.errors import ModelError
from tunemath.pipeline import Run, advance
from tunemath.runner.models import attach_adapter, load_base, trainable_counts
from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.resolve import resolve_model
from tunemath.space import LoraSpace, UpdateSpace, ledger_of, read_blueprint

CPU = torch.device("cpu"), torch.float32


def attach(folder: Path, space: UpdateSpace, seed: int = 0):
    return attach_adapter(load_base(resolve_model(ModelChoice(id=str(folder))), *CPU), space, seed)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["down_proj"]])
@pytest.mark.parametrize("rank", [1, 6])
def test_the_ledger_the_live_tensors_and_peft_count_alike(tiny_model, targets, rank):
    space = LoraSpace(rank=rank, targets=targets)
    model = attach(tiny_model, space)
    counts, ledger = trainable_counts(model), ledger_of(read_blueprint(tiny_model), space)
    peft_trainable, peft_total = model.get_nb_trainable_parameters()
    assert counts["live"] == counts["peft"] == ledger.trainable == peft_trainable
    assert counts["total_peft"] == ledger.total == peft_total


@pytest.mark.parametrize(
    ("space", "scale"),
    [
        (LoraSpace(rank=4, alpha=8), 2.0),
        (LoraSpace(rank=4, alpha=8, rslora=True), 4.0),
        (LoraSpace(rank=8, alpha=3), 0.375),
        (LoraSpace(rank=2, alpha=1, rslora=True), 1 / math.sqrt(2)),
        (LoraSpace(rank=4, alpha=2.5), 0.625),
    ],
)
def test_peft_scales_the_update_as_the_contract_says(tiny_model, space, scale):
    layers: list[Any] = [m for m in attach(tiny_model, space).modules() if isinstance(m, LoraLayer)]
    assert len(layers) == 14
    assert [layer.scaling["default"] for layer in layers] == pytest.approx([scale] * 14)


def test_dora_scales_each_row_of_the_updated_weight_to_its_length(tiny_model):
    model = attach(tiny_model, LoraSpace(method="dora", rank=3, alpha=6)).eval()
    torch.manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    plain = load_base(resolve_model(ModelChoice(id=str(tiny_model))), *CPU)
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            a, b = (getattr(module, f"lora_{x}")["default"].weight for x in "AB")
            length = module.lora_magnitude_vector["default"].weight
            weight: Any = plain.get_submodule(name).weight
            updated = weight + 2.0 * b @ a
            weight.data = length[:, None] * updated / updated.norm(dim=1, keepdim=True)
    ids = torch.tensor([[5, 9, 30, 7, 11]])
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=1e-4, atol=1e-4
        )


def test_what_peft_refuses_is_told_in_its_words():
    from transformers import MixtralConfig, MixtralForCausalLM

    with quiet_libraries():
        mixture = MixtralForCausalLM(
            MixtralConfig(
                vocab_size=31, hidden_size=16, intermediate_size=8, num_hidden_layers=1,
                num_attention_heads=2, num_key_value_heads=2, num_local_experts=2,
            )
        )  # fmt: skip
    with pytest.raises(ModelError, match=r"PEFT refuses dora here: .*use_dora=True"):
        attach_adapter(mixture, LoraSpace(method="dora"), 0)


def test_the_seed_decides_the_adapter_alone(tiny_model):
    first, same, other = (
        dict(attach(tiny_model, LoraSpace(), seed).named_parameters()) for seed in (1, 1, 2)
    )
    a = next(name for name in first if "lora_A" in name)
    assert torch.equal(first[a], same[a])
    assert not torch.equal(first[a], other[a])
    assert all(not tensor.any() for name, tensor in first.items() if "lora_B" in name)


def test_a_target_that_matches_nothing_names_those_that_exist(tiny_job):
    contract = FineTune.load(tiny_job, ["space.targets=[q_prj]"])
    with pytest.raises(ModelError, match=r"q_prj.*q_proj"):
        advance(Run(contract, tiny_job.parent / "runs"), "plan")


def test_a_broken_weights_file_is_named(tiny_model, tmp_path):
    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match=str(tmp_path)):
        load_base(resolve_model(ModelChoice(id=str(tmp_path))), *CPU)
