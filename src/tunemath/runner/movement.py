"""How far the model moved: KL(tuned ‖ base) where the model answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from tunemath.budget.peaks import MOVEMENT_BYTES
from tunemath.mask import common_prefix
from tunemath.runner.answering import batches
from tunemath.runner.heads import States, kl
from tunemath.runner.prefix import Batch, SharedPrefix, pad_right

__all__ = ["Read", "RowMovement", "kept_states", "movements_from", "row_movements"]

Tick = Callable[[int], None]


@dataclass
class RowMovement:
    """One row's KL in nats: at each answer position in order, and summed over the prompt's."""

    answer: list[float] = field(default_factory=list)
    agree: int = 0
    """Answer positions at which tuned and base prefer the same token."""
    prompt_sum: float = 0.0
    prompt_positions: int = 0


@dataclass(frozen=True)
class Read:
    """What both models read, teacher-forced: prompts and the reference answers after them."""

    prompts: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]
    pad: int

    @cached_property
    def shared(self) -> list[int]:
        """The prompts' common prefix."""
        return list(common_prefix(self.prompts))

    def batches(self, skipped: int, vocabulary: int) -> Iterator[list[int]]:
        """Yield rows' indices, so many together as their logits beyond the prefix allow."""
        lengths = [
            len(p) + len(a) - skipped for p, a in zip(self.prompts, self.answers, strict=True)
        ]
        return batches(lengths, max(1, MOVEMENT_BYTES // (4 * vocabulary * max(lengths))))

    def batch(self, indices: Sequence[int], skipped: int, device: torch.device) -> Batch:
        """Stack some rows without their first ``skipped`` tokens."""
        rows = [[*self.prompts[i], *self.answers[i]][skipped:] for i in indices]
        return pad_right(rows, self.pad, device)


def row_movements(tuned: Any, read: Read, tick: Tick) -> list[RowMovement]:
    """Measure KL(tuned ‖ base) over the whole vocabulary.

    The base is the same model with its update off. A position belongs to the answer when the token
    it predicts does, the terminator included. Positions of the rows' common prefix are computed
    once and counted in every row's prompt.
    """
    after, before = _states(tuned, read), _states(tuned, read, tuned.disable_adapter)
    return _movements(tuned, read, after, before, tick)


def kept_states(tuned: Any, read: Read) -> list[States]:
    """Return what `movements_from` needs of a tuned model: D numbers a position, and its head."""
    return [States(states.values.cpu(), states.head) for states in _states(tuned, read)]


def movements_from(kept: Iterable[States], base: Any, read: Read, tick: Tick) -> list[RowMovement]:
    """Measure as `row_movements` does, from the states of a tuned model that is gone."""
    after = (States(states.values.to(base.device), states.head) for states in kept)
    return _movements(base, read, after, _states(base, read), tick)


@torch.inference_mode()
def _states(
    model: Any, read: Read, state: Callable[[], AbstractContextManager] = nullcontext
) -> Iterator[States]:
    """Yield the states (N, …) of the shared prefix, if there is one, then of each batch's tokens.

    ``state`` is what the model is in while it runs.
    """
    shared = SharedPrefix(model, read.shared)
    with state():
        shared.fill()
    if shared.states is not None:
        yield shared.states
    for indices in read.batches(len(shared.ids), model.config.vocab_size):
        batch = read.batch(indices, len(shared.ids), model.device)
        with state():
            found = shared.forward(batch)
        yield found[batch.real]


@torch.inference_mode()
def _movements(
    model: Any, read: Read, after: Iterator[States], before: Iterator[States], tick: Tick
) -> list[RowMovement]:
    """Compare two models' states, batch by batch."""
    skipped = len(SharedPrefix(model, read.shared).ids)
    prefix = kl(next(after), next(before)).tolist() if skipped else []
    result: list[RowMovement] = [RowMovement() for _ in read.prompts]
    done = 0
    for indices in read.batches(skipped, model.config.vocab_size):
        batch = read.batch(indices, skipped, model.device)
        begins = [len(read.prompts[index]) - 1 - skipped for index in indices]
        moved, agree = _compared(next(after), next(before), batch, begins)
        for place, index in enumerate(indices):
            positions = [*prefix, *moved[place, : int(batch.lengths[place]) - 1].tolist()]
            first = len(read.prompts[index]) - 1
            movement = result[index]
            movement.answer = positions[first:]
            movement.agree = agree[place]
            movement.prompt_sum = sum(positions[:first])
            movement.prompt_positions = first
        done += len(indices)
        tick(done)
    return result


def _compared(
    tuned: States, base: States, batch: Batch, begins: Sequence[int]
) -> tuple[torch.Tensor, list[int]]:
    """Return KL (B, T), and how often the preferred token is the same from column ``begins`` on.

    The states are those of the batch's real tokens, row after row.
    """
    device = batch.ids.device
    found = torch.zeros(batch.real.shape, dtype=torch.float32, device=device)
    found[batch.real] = kl(tuned, base).float()
    columns = torch.arange(batch.real.shape[1], device=device)
    first = torch.tensor(begins, device=device)
    answers = (columns >= first[:, None]) & (columns < batch.lengths[:, None] - 1)
    some = answers[batch.real]
    same = torch.zeros_like(batch.real)
    same[answers] = tuned[some].preferred() == base[some].preferred()
    return found, same.sum(dim=1).tolist()
