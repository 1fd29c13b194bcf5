"""Training a model's own weights: what learns, and that the base stays at hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import PAD, make_family, make_llama, make_rows
from torch import nn

from tunemath.contract import ModelChoice
from tunemath.errors import RunError
from tunemath.runner import probes
from tunemath.runner.models import attach_adapter, load_adapter, load_base
from tunemath.runner.movement import Read, row_movements
from tunemath.runner.probing import answer_logits
from tunemath.runner.resolve import resolve_model
from tunemath.space import LastLayersSpace, UnfreezeSpace

IDS = torch.tensor([[5, 9, 3, 7, 11]])
SPACES = {
    "full": UnfreezeSpace(method="full"),
    "layernorm": UnfreezeSpace(method="layernorm"),
    "linear_probe": UnfreezeSpace(method="linear_probe"),
    "last_layers": LastLayersSpace(method="last_layers", head=True),
}
CPU = torch.device("cpu"), torch.float32


def attached(base: Any, method: str) -> Any:
    """The base with a method's update, and the copy that is its reference."""
    model = attach_adapter(base, SPACES[method], 0)
    model.keep_base()
    return model


def moved(model: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    for parameter in model.trained().values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("method", SPACES)
@pytest.mark.parametrize("name", ["llama", "llama, tied", "gpt 2"])
@torch.no_grad()
def test_switched_off_it_is_the_base_and_on_again_the_tuned(name, method):
    expected = make_family(name, torch.float32)(input_ids=IDS).logits
    model = attached(make_family(name, torch.float32), method).eval()
    assert torch.equal(model(input_ids=IDS).logits, expected)
    after = moved(model)(input_ids=IDS).logits
    assert (after - expected).abs().max() > 0.01
    trained = list(model.trained().values())
    with model.disable_adapter():
        assert torch.equal(model(input_ids=IDS).logits, expected)
        assert model.trained() == {}  # the reference can't be trained by mistake
        with model.disable_adapter():
            assert torch.equal(model(input_ids=IDS).logits, expected)
    assert torch.equal(model(input_ids=IDS).logits, after)
    assert all(a is b for a, b in zip(trained, model.trained().values(), strict=True))


def test_the_reference_does_not_take_part_in_the_gradient():
    model = attached(make_llama(torch.float32), "full")
    tuned = model(input_ids=IDS).logits
    with torch.no_grad(), model.disable_adapter():
        reference = model(input_ids=IDS).logits
    (tuned - 2 * reference).pow(2).sum().backward()
    plain = make_llama(torch.float32)
    (plain(input_ids=IDS).logits - 2 * reference).pow(2).sum().backward()
    expected = {n: p.grad for n, p in plain.named_parameters()}
    for name, parameter in model.trained().items():
        torch.testing.assert_close(parameter.grad, expected[name])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_reference_pass_between_forward_and_backward_changes_no_gradient(checkpointing):
    found = []
    for between in (False, True):
        model = moved(attached(make_llama(torch.float32), "full")).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        loss = model(input_ids=IDS).logits.pow(2).sum()
        if between:
            with torch.no_grad(), model.disable_adapter():
                model(input_ids=IDS)
        loss.backward()
        found.append([p.grad for p in model.trained().values()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["llama", "llama, tied"])
def test_the_movement_of_a_trained_head_is_seen(name):
    # Both sides' heads are one module; they must not be taken for one weight.
    model = moved(attached(make_family(name, torch.float32), "linear_probe"))
    model.eval()
    (found,) = row_movements(model, Read([[5, 9]], [[3, 7]], PAD), lambda _: None)
    ids = torch.tensor([[5, 9, 3, 7]])
    with torch.no_grad():
        p = model(input_ids=ids).logits[0].double().log_softmax(-1)
        q = make_family(name, torch.float32)(input_ids=ids).logits[0].double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)[1:-1]
    assert kl.min() > 1e-3
    assert found.answer == pytest.approx(kl.tolist(), rel=1e-3)


def test_a_half_precision_model_is_trained_in_float32():
    model = attach_adapter(make_llama(torch.bfloat16), SPACES["layernorm"], 0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("method", SPACES)
@torch.no_grad()
def test_what_is_saved_loads_back_and_merges(tiny_model, tmp_path, method):
    base = resolve_model(ModelChoice(id=str(tiny_model)))
    model = moved(attach_adapter(load_base(base, *CPU), SPACES[method], 0)).eval()
    expected = model(input_ids=IDS).logits
    model.save_pretrained(tmp_path / "saved", base={"sha256": base.weights_hash()})
    again = load_adapter(load_base(base, *CPU), tmp_path / "saved")
    assert torch.equal(again(input_ids=IDS).logits, expected)
    with again.disable_adapter():
        assert torch.equal(again(input_ids=IDS).logits, load_base(base, *CPU)(input_ids=IDS).logits)
    again.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = load_base(resolve_model(ModelChoice(id=str(tmp_path / "merged"))), *CPU)
    assert torch.equal(merged(input_ids=IDS).logits, expected)


def test_a_fully_trained_model_is_saved_as_an_ordinary_one(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    base = resolve_model(ModelChoice(id=str(tiny_model)))
    model = moved(attach_adapter(load_base(base, *CPU), SPACES["full"], 0)).eval()
    model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(plain(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_the_base_is_kept_only_where_it_is_asked_for():
    plain, rows = make_llama(torch.float32), make_rows(2)
    base = answer_logits(plain, rows)
    model = attach_adapter(plain, SPACES["full"], 0)
    assert "switched_off" not in probes.identity(base, model, rows)
    with pytest.raises(RunError, match="no copy"), model.disable_adapter():
        pass
    model.keep_base()
    assert probes.identity(base, model, rows)["switched_off"] == 0.0


def test_frozen_weights_get_no_gradient():
    model = attach_adapter(make_llama(torch.float32), SPACES["last_layers"], 0)
    model(input_ids=IDS).logits.sum().backward()
    for name, parameter in model.get_base_model().named_parameters():
        learns = name.startswith(("model.layers.1.", "model.norm", "lm_head"))
        assert (parameter.grad is not None) == parameter.requires_grad == learns, name
    assert isinstance(model, nn.Module)
