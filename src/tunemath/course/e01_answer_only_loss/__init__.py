"""1. The loss of the answer alone."""

from __future__ import annotations

import numpy as np

from tunemath.course.exercise import Case, Mistake, Part

__all__ = ["PARTS"]


def _loss(losses, mask):
    total, count = 0.0, 0
    for loss, counts in zip(losses, mask, strict=True):
        if counts:
            total, count = total + float(loss), count + 1
    if not count:
        raise ValueError("nothing is supervised")
    return total / count


def _draw(rng: np.random.Generator, size: int) -> Case:
    mask = rng.integers(0, 2, size + 2)
    mask[rng.integers(size + 2)] = 1
    return Case((rng.gamma(2.0, 1.0, size + 2).round(3), mask))


def _batch(micro_batches):
    total, count = 0.0, 0
    for losses, mask in micro_batches:
        for loss, counts in zip(losses, mask, strict=True):
            if counts:
                total, count = total + float(loss), count + 1
    if not count:
        raise ValueError("nothing is supervised")
    return total / count


def _draw_batch(rng: np.random.Generator, size: int) -> Case:
    return Case(([_draw(rng, int(rng.integers(0, size + 3))).arguments for _ in range(2 + size)],))


def _mean(micro_batch):
    losses, mask = (np.asarray(each, float) for each in micro_batch)
    return float((losses * mask).sum() / mask.sum()) if mask.sum() else 0.0


_EMPTY = Case(([0.3, 0.7], [0, 0]), "no token is supervised")
_PADDED = Case(
    (np.array([0.5, 1.5, np.nan]), np.array([1, 1, 0])), "the loss of a padding token is NaN"
)

PARTS = (
    Part(
        "answer_only_loss",
        _loss,
        Case((np.array([0.1, 0.2, 1.0, 0.8]), np.array([0, 0, 1, 1]))),
        0.9,
        _draw,
        (
            Mistake(
                "mean over all tokens",
                lambda losses, mask: float(np.mean(losses)),
                "This is the mean over all tokens, prompt and padding too: the mask isn't used. "
                "The model would mostly be trained to write prompts.",
            ),
            Mistake(
                "divided by all tokens",
                lambda losses, mask: float(np.sum(np.where(mask, losses, 0.0)) / len(losses)),
                "The sum is right, but it is divided by the number of all tokens: a longer prompt "
                "would make the loss smaller. Divide by how many the mask lets through.",
            ),
            Mistake(
                "sum instead of mean",
                lambda losses, mask: float(np.sum(np.where(mask, losses, 0.0))),
                "This is the sum over the answer. Divide it by the number of supervised tokens, "
                "or long answers weigh more and the learning rate depends on their length.",
            ),
            Mistake(
                "mask inverted",
                lambda losses, mask: float(np.mean(np.asarray(losses)[np.asarray(mask) == 0])),
                "This is the mean over the tokens where the mask is 0: prompt instead of answer. "
                "Here 1 means that a token counts.",
            ),
            Mistake(
                "mask off by one",
                lambda losses, mask: _loss(losses, np.roll(mask, 1)),
                "The mask is shifted by one place: the first answer token isn't trained, and one "
                "that isn't of the answer is. Losses and mask are aligned already, both with the "
                "token that is predicted.",
            ),
            Mistake(
                "zero for an empty mask",
                lambda losses, mask: _loss(losses, mask) if np.sum(mask) else 0.0,
                "An empty mask gives 0 here, which reads like a perfect loss. A row that was cut "
                "before its answer would pass unseen: raise a `ValueError`.",
            ),
            Mistake(
                "NaN for an empty mask",
                lambda losses, mask: _loss(losses, mask) if np.sum(mask) else float("nan"),
                "An empty mask gives NaN here, 0 divided by 0. Raise a `ValueError` that says that "
                "nothing is supervised.",
            ),
            Mistake(
                "times the mask",
                lambda losses, mask: (
                    float(np.sum(np.asarray(losses) * np.asarray(mask)) / np.sum(mask))
                    if np.sum(mask)
                    else _loss(losses, mask)
                ),
                "0 · NaN is NaN: multiplying by the mask lets a broken loss of a padding token "
                "into the sum. Select the answer's losses (`losses[mask == 1]`), don't multiply.",
            ),
        ),
        (_EMPTY, _PADDED),
    ),
    Part(
        "batch_loss",
        _batch,
        Case(([([1.0, 3.0], [0, 1]), ([1.0, 1.0, 1.0], [1, 1, 1])],)),
        1.5,
        _draw_batch,
        (
            Mistake(
                "mean of means",
                lambda micro_batches: float(np.mean([_mean(m) for m in micro_batches])),
                "This is the mean of the micro-batches' means, so a token in a short one weighs "
                "more, and the loss changes with how the batch is cut. Add up sums and counts, and "
                "divide once. Gradient accumulation had this bug in the big trainers until 2024.",
            ),
            Mistake(
                "sum of means",
                lambda micro_batches: float(np.sum([_mean(m) for m in micro_batches])),
                "The micro-batches' means are added up: the loss grows with their number.",
            ),
            Mistake(
                "divided by all tokens",
                lambda micro_batches: (
                    sum(float(np.sum(np.where(m, x, 0.0))) for x, m in micro_batches)
                    / sum(len(x) for x, _ in micro_batches)
                ),
                "The sum is right, but divided by all tokens, prompts too. Count what the masks "
                "let through.",
            ),
            Mistake(
                "refused an empty micro-batch",
                lambda micro_batches: _batch([(x, m) for x, m in micro_batches if _loss(x, m)]),
                "A micro-batch without a supervised token is no error as long as the whole batch "
                "has some: it adds 0 to both sums.",
            ),
            Mistake(
                "mean over the last micro-batch",
                lambda micro_batches: _mean(micro_batches[-1]),
                "Only the last micro-batch is counted: is the `return` inside the loop, or are "
                "the sums set to 0 in it?",
            ),
        ),
        (
            Case(
                ([([1.0, 2.0], [1, 1]), ([5.0], [0])],),
                "one micro-batch has nothing supervised, the batch has",
            ),
            Case(([([1.0], [0]), ([2.0], [0])],), "nothing in the whole batch is supervised"),
        ),
    ),
)
