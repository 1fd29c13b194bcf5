"""KL at every position against float64 log-softmax over whole rows, one at a time."""

from __future__ import annotations

import random

import pytest
import torch
from small_models import (
    FAMILIES,
    PAD,
    draw,
    log_softmax_of,
    make_family,
    make_llama,
    make_sliding,
    with_adapter,
)

import tolerance
from tunemath.runner import movement
from tunemath.runner.movement import Read, kept_states, movements_from, row_movements


def make_job(shared: int, seed: int = 5) -> tuple[list[list[int]], list[list[int]]]:
    generator = random.Random(seed)
    prefix = draw(generator, shared, shared)
    prompts = [[*prefix, 3 + n, *draw(generator, 0, 8)] for n in range(6)]
    return prompts, [draw(generator, 1, 5) for _ in range(6)]


def plain_kl(tuned, ids: list[int], *, reverse: bool = False) -> list[float]:
    """KL(tuned ‖ base) at every position, or KL(base ‖ tuned)."""
    moved = log_softmax_of(tuned, ids)
    with tuned.disable_adapter():
        base = log_softmax_of(tuned, ids)
    p, q = (base, moved) if reverse else (moved, base)
    return (p.exp() * (p - q)).sum(-1).tolist()


def measure(tuned, prompts, answers):
    return row_movements(tuned, Read(prompts, answers, PAD), lambda done: None)


@pytest.mark.parametrize("make", [make_llama, make_sliding])
@pytest.mark.parametrize("shared", [0, 1, 9])
def test_every_position_equals_the_plain_kl(make, shared):
    tuned = with_adapter(make())
    prompts, answers = make_job(shared)
    for prompt, answer, found in zip(
        prompts, answers, measure(tuned, prompts, answers), strict=True
    ):
        kl = plain_kl(tuned, [*prompt, *answer])
        first = len(prompt) - 1
        assert found.answer == pytest.approx(kl[first:-1], rel=2e-4, abs=1e-6)
        assert len(found.answer) == len(answer)
        assert found.prompt_sum == pytest.approx(sum(kl[:first]), rel=2e-4, abs=1e-6)
        assert found.prompt_positions == first


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["in the layers", "in the layers and the head"])
def test_every_family_moves_by_the_plain_kl(family, where):
    base = make_family(family)
    names = {n.rpartition(".")[2] for n, m in base.named_modules() if n.endswith(("k_proj", "_fc"))}
    if where == "in the layers and the head":
        names |= {"lm_head"}
    tuned = with_adapter(base, target_modules=sorted(names))
    prompts, answers = make_job(4)
    for prompt, answer, found in zip(
        prompts, answers, measure(tuned, prompts, answers), strict=True
    ):
        kl = plain_kl(tuned, [*prompt, *answer])
        assert sum(kl) > 1e-3
        # In these float64 models attention's softmax alone is rounded to float32.
        slack = tolerance.kl(max(kl), 16 * tolerance.eps(torch.float32))
        assert found.answer == pytest.approx(kl[len(prompt) - 1 : -1], rel=1e-6, abs=slack)
        whole = pytest.approx(sum(kl[: len(prompt) - 1]), rel=1e-6, abs=slack * len(prompt))
        assert found.prompt_sum == whole


def test_a_movement_of_1e_9_nats_is_measured_in_float32():
    prompts, answers = make_job(4)
    results = []
    for dtype in (torch.float64, torch.float32):
        tuned = with_adapter(make_llama().to(dtype), moved=False)
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 2e-6)
        results.append([sum(row.answer) for row in measure(tuned, prompts, answers)])
    exact, found = results
    assert 1e-10 < max(exact) < 1e-8
    # Logits of size 3 are off by some roundings each; a difference of log-softmaxes in float32
    # would be off by 1e-7, a hundred times the movement.
    for value, nats, answer in zip(found, exact, answers, strict=True):
        slack = tolerance.kl(nats / len(answer), 3 * tolerance.dot(4, torch.float32))
        assert value == pytest.approx(nats, abs=slack * len(answer))


def test_the_direction_is_tuned_from_base():
    tuned = with_adapter(make_llama())
    prompts, answers = make_job(4)
    found = sum(sum(row.answer) for row in measure(tuned, prompts, answers))
    forward, reverse = (
        sum(
            sum(plain_kl(tuned, [*p, *a], reverse=turned)[len(p) - 1 : -1])
            for p, a in zip(prompts, answers, strict=True)
        )
        for turned in (False, True)
    )
    assert found == pytest.approx(forward, rel=1e-4)
    assert abs(forward - reverse) > 0.05 * forward  # so the test could fail


def test_agreement_counts_positions_with_the_same_first_choice():
    tuned = with_adapter(make_llama())
    prompts, answers = make_job(4)
    for prompt, answer, found in zip(
        prompts, answers, measure(tuned, prompts, answers), strict=True
    ):
        ids = [*prompt, *answer]
        moved = log_softmax_of(tuned, ids).argmax(-1)
        with tuned.disable_adapter():
            base = log_softmax_of(tuned, ids).argmax(-1)
        assert found.agree == int((moved == base)[len(prompt) - 1 : -1].sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_adapter_that_does_nothing_is_exactly_at_zero(dtype):
    tuned = with_adapter(make_llama(dtype), moved=False)
    prompts, answers = make_job(4)
    for found in measure(tuned, prompts, answers):
        assert found.answer == [0.0] * len(found.answer)
        assert (found.prompt_sum, found.agree) == (0.0, len(found.answer))


@pytest.mark.parametrize("byte_limit", [1, 4 * 61 * 14 * 2, 2**30])
def test_batch_size_and_padding_change_nothing(monkeypatch, byte_limit):
    tuned = with_adapter(make_llama())
    prompts, answers = make_job(9)
    monkeypatch.setattr(movement, "MOVEMENT_BYTES", byte_limit)
    together = measure(tuned, prompts, answers)
    for n, found in enumerate(together):
        (alone,) = measure(tuned, [prompts[n]], [answers[n]])
        assert found.answer == pytest.approx(alone.answer, rel=2e-4, abs=1e-6)


def test_all_rows_are_ticked():
    done: list[int] = []
    prompts, answers = make_job(2)
    row_movements(with_adapter(make_llama()), Read(prompts, answers, PAD), done.append)
    assert done[-1] == 6


@pytest.mark.parametrize("make", [make_llama, make_sliding])
def test_states_that_were_kept_give_the_same(make):
    tuned = with_adapter(make())
    read = Read(*make_job(4), PAD)
    again = movements_from(kept_states(tuned, read), make(), read, lambda done: None)
    for found, live in zip(again, measure(tuned, read.prompts, read.answers), strict=True):
        # The sums' order may differ by the weights' places in memory, also in one precision.
        slack = tolerance.kl(max(live.answer), 16 * tolerance.eps(torch.float32))
        whole = pytest.approx(live.prompt_sum, rel=1e-6, abs=slack * live.prompt_positions)
        assert found.answer == pytest.approx(live.answer, rel=1e-6, abs=slack)
        assert (found.prompt_sum, found.prompt_positions) == (whole, live.prompt_positions)
        assert found.agree == live.agree
