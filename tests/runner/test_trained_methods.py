"""Every method's gradient through the real Trainer, checkpointed too, against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_models import make_family
from test_trainer import DPO, ROWS, SFT, make_pairs, make_trainer, plain_gradient, step_of
from torch.nn import functional as F

from tunemath.objective.record import Objective
from tunemath.runner.models import attach_adapter
from tunemath.runner.unfrozen import UnfrozenModel
from tunemath.space import UpdateSpace, parse_space

METHODS = {
    "dora": ("dora", ["rank=3"]),
    "full": ("full", []),
    "last_layers": ("last_layers", []),
    "layernorm": ("layernorm", []),
    "houlsby": ("adapter", ["style=houlsby", "bottleneck=5"]),
    "parallel": ("adapter", ["style=parallel", "bottleneck=5"]),
    "prefix": ("prefix", ["length=3"]),
    "projected": ("prefix", ["length=3", "projection=true"]),
    "prompt": ("prompt", ["length=3"]),
}


def model_of(name: str) -> Any:
    """A tied model after some training: every part of the update does something."""
    space: UpdateSpace = parse_space(*METHODS[name])
    model = attach_adapter(make_family("llama, tied", torch.float32), space, 0).train()
    if isinstance(model, UnfrozenModel):
        model.keep_base()
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def log_prob(model: Any, ids: list[int], supervised: list[bool]) -> torch.Tensor:
    """Summed log-probability of a row's answer, the row by itself."""
    table = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    places = [place for place in range(1, len(ids)) if supervised[place]]
    return torch.stack([table[place - 1, ids[place]] for place in places]).sum()


def plain_loss(model: Any, objective: Objective) -> torch.Tensor:
    if objective.kind == "sft":
        count = sum(sum(supervised) for _, supervised in ROWS)
        return -torch.stack([log_prob(model, *row) for row in ROWS]).sum() / count
    losses = []
    for chosen, rejected in make_pairs():
        with torch.no_grad(), model.disable_adapter():
            reference = log_prob(model, *chosen) - log_prob(model, *rejected)
        margin = log_prob(model, *chosen) - log_prob(model, *rejected) - reference
        losses.append(-F.logsigmoid(0.3 * margin))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("objective", "checkpointing"), [(SFT, False), (DPO, True)], ids=["sft", "dpo, checkpointed"]
)
@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradient_are_those_of_plain_rows(tmp_path, name, objective, checkpointing):
    plain = model_of(name)
    value = plain_loss(plain, objective)
    expected = plain_gradient(plain, value)
    trainer = make_trainer(
        tmp_path, model_of(name), objective, micro=4, accumulation=2, learning_rate=0.1
    )
    trainer.args.activation_checkpointing = checkpointing
    loss, found = step_of(trainer)
    assert loss == pytest.approx(value.item(), rel=1e-4)
    assert found.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for key, gradient in expected.items():
        torch.testing.assert_close(
            found[key],
            gradient.float(),
            rtol=1e-2,
            atol=2e-4 * scale,
            msg=lambda m, k=key: f"{k}: {m}",
        )


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_holds_what_is_trained_and_gives_it_back(tmp_path, name):
    trainer = make_trainer(tmp_path, model_of(name))
    model: Any = trainer.model
    trainer._save(str(tmp_path / "c"))
    saved = load_file(tmp_path / "c/trained.safetensors")
    learns = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    assert saved.keys() == learns.keys()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    trainer._load_from_checkpoint(str(tmp_path / "c"))
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, learns[key]), key
