"""How far the model moved: KL(tuned ‖ base) where the model answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tunemath.mask import common_prefix
from tunemath.objective import kl_from_logits
from tunemath.runner.answering import batches
from tunemath.runner.prefix import Batch, SharedPrefix, pad_right

__all__ = ["RowMovement", "row_movements"]

_LOGIT_BYTES = 256 * 2**20
_KL_ROWS = 8  # its temporaries stay in cache: five times faster than 128 rows on a CPU


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
        kl, same = _batch_kl(tuned, with_adapter, without, batch)
        for place, index in enumerate(indices):
            positions = [*before, *kl[place, : len(own[index]) - 1].tolist()]
            first = len(prompts[index]) - 1
            offset = first - len(before)
            movement = result[index]
            movement.answer = positions[first:]
            movement.agree = int(same[place, max(offset, 0) : len(own[index]) - 1].sum())
            movement.prompt_sum = sum(positions[:first])
            movement.prompt_positions = first
        done += len(indices)
        tick(done)
    return result


def _prefix_kl(with_adapter: SharedPrefix, without: SharedPrefix) -> list[float]:
    if with_adapter.logits is None or without.logits is None:
        return []
    return _kl_in_blocks(with_adapter.logits, without.logits).tolist()


def _batch_kl(
    tuned: Any, with_adapter: SharedPrefix, without: SharedPrefix, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return KL and whether the preferred token is the same, each (B, T)."""
    moved = with_adapter.forward(batch)
    with tuned.disable_adapter():
        base = without.forward(batch)
    kl = torch.zeros(batch.real.shape, dtype=torch.float32, device=moved.device)
    kl[batch.real] = _kl_in_blocks(moved[batch.real], base[batch.real])
    return kl, (moved.argmax(-1) == base.argmax(-1)) & batch.real


def _kl_in_blocks(tuned: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return KL (N,) for logits (N, V), a block of rows at a time."""
    blocks = zip(tuned.split(_KL_ROWS), base.split(_KL_ROWS), strict=True)
    return torch.cat([kl_from_logits(t.float(), b.float()) for t, b in blocks])
