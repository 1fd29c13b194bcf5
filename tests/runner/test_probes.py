"""What the probes say of a sound model, and of one that was tampered with."""

from __future__ import annotations

import pytest
import torch
from small_models import log_softmax_of, make_llama, make_rows, with_adapter

from tunemath.runner import probes
from tunemath.runner.probing import answer_logits, compared

ROWS = make_rows(5)


def test_answer_logits_are_those_that_predict_supervised_tokens():
    model = make_llama()
    found = answer_logits(model, ROWS).log_softmax(-1).double()
    expected = [
        log_softmax_of(model, ids)[place - 1]
        for ids, supervised in ROWS
        for place in range(1, len(ids))
        if supervised[place]
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_a_fresh_adapter_moves_no_logit_and_a_moved_one_does():
    base = answer_logits(make_llama(), ROWS)
    still = probes.identity(base, with_adapter(make_llama(), moved=False), ROWS)
    assert still == {
        "max_logit_difference": 0.0,
        "kl": pytest.approx(0.0, abs=1e-6),
        "kl_max": pytest.approx(0.0, abs=1e-6),
        "moves_by_nature": False,
        "positions": sum(sum(supervised) for _, supervised in ROWS),
        "switched_off": 0.0,
    }
    moved = probes.identity(base, with_adapter(make_llama()), ROWS)
    assert moved["max_logit_difference"] > 0.01
    assert moved["switched_off"] == 0.0


def test_an_update_that_changed_the_base_below_it_is_told_by_switching_it_off():
    """As PiSSA's start does: on, the model is the base; off, it is the base without B A."""
    base = answer_logits(make_llama(torch.float32), ROWS)
    pissa = with_adapter(make_llama(torch.float32), moved=False, init_lora_weights="pissa")
    found = probes.identity(base, pissa, ROWS)
    assert found["max_logit_difference"] < 1e-3 < found["switched_off"]


def test_what_is_compared_is_the_largest_gap_and_the_kl():
    reference = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    other = reference.clone()
    other[1, 3] -= 2.5
    p, q = other.double().log_softmax(-1), reference.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    assert compared(reference, other) == {
        "max_logit_difference": pytest.approx(2.5),
        "kl": pytest.approx(float(kl.mean()), rel=1e-5),
        "kl_max": pytest.approx(float(kl.max()), rel=1e-5),
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
