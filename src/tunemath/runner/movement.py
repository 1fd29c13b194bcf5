"""How far the model moved: KL(tuned ‖ base) where the model answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tunemath.mask import common_prefix
from tunemath.runner.answering import batches
from tunemath.runner.heads import kl
from tunemath.runner.prefix import Batch, SharedPrefix, pad_right

__all__ = ["RowMovement", "row_movements"]

_LOGIT_BYTES = 256 * 2**20


@dataclass
class RowMovement:
    """One row's KL in nats: at each answer position in order, and summed over the prompt's."""

    answer: list[float] = field(default_factory=list)
    agree: int = 0
    """Answer positions at which tuned and base prefer the same token."""
    prompt_sum: float = 0.0
    prompt_positions: int = 0


@torch.inference_mode()
def row_movements(
    tuned: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    pad: int,
    tick: Callable[[int], None],
) -> list[RowMovement]:
    """Measure KL(tuned ‖ base) over the whole vocabulary, teacher-forced on reference answers.

    ``tuned`` is a PEFT model; the base is the same model with its adapter off. A position
    belongs to the answer when the token it predicts does, the terminator included. Positions of
    the rows' common prefix are computed once and counted in every row's prompt.
    """
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    shared = common_prefix(prompts)
    with_adapter, without = SharedPrefix(tuned, shared), SharedPrefix(tuned, shared)
    with_adapter.fill()
    with tuned.disable_adapter():
        without.fill()
    before = _prefix_kl(with_adapter, without)
    own = [row[len(with_adapter.ids) :] for row in rows]
    size = max(1, _LOGIT_BYTES // (4 * tuned.config.vocab_size * max(map(len, own))))
    result: list[RowMovement] = [RowMovement() for _ in rows]
    done = 0
    for indices in batches([len(row) for row in own], size):
        batch = pad_right([own[index] for index in indices], pad, tuned.device)
        begins = [len(prompts[index]) - 1 - len(before) for index in indices]
        moved, agree = _batch_movement(tuned, with_adapter, without, batch, begins)
        for place, index in enumerate(indices):
            positions = [*before, *moved[place, : len(own[index]) - 1].tolist()]
            first = len(prompts[index]) - 1
            movement = result[index]
            movement.answer = positions[first:]
            movement.agree = agree[place]
            movement.prompt_sum = sum(positions[:first])
            movement.prompt_positions = first
        done += len(indices)
        tick(done)
    return result


def _prefix_kl(with_adapter: SharedPrefix, without: SharedPrefix) -> list[float]:
    if with_adapter.states is None or without.states is None:
        return []
    return kl(with_adapter.states, without.states).tolist()


def _batch_movement(
    tuned: Any,
    with_adapter: SharedPrefix,
    without: SharedPrefix,
    batch: Batch,
    begins: Sequence[int],
) -> tuple[torch.Tensor, list[int]]:
    """Return KL (B, T), and how often the preferred token is the same from column ``begins`` on."""
    moved = with_adapter.forward(batch)
    with tuned.disable_adapter():
        base = without.forward(batch)
    found = torch.zeros(batch.real.shape, dtype=torch.float32, device=tuned.device)
    found[batch.real] = kl(moved[batch.real], base[batch.real]).float()
    columns = torch.arange(batch.real.shape[1], device=tuned.device)
    first = torch.tensor(begins, device=tuned.device)
    answers = (columns >= first[:, None]) & (columns < batch.lengths[:, None] - 1)
    same = torch.zeros_like(batch.real)
    same[answers] = moved[answers].preferred() == base[answers].preferred()
    return found, same.sum(dim=1).tolist()
