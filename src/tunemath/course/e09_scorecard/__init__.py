"""9. One number for two things, and where it turns."""

from __future__ import annotations

import numpy as np

from tunemath.course.exercise import Case, Mistake, Part

__all__ = ["PARTS"]


def _score(quality, retention, weight):
    if not 0 <= weight <= 1:
        raise ValueError("a weight is between 0 and 1")
    return weight * quality + (1 - weight) * retention


def _turn(first, second):
    gain, loss = first[0] - second[0], second[1] - first[1]
    if gain * loss <= 0:
        return None
    return loss / (gain + loss)


def _draw(rng: np.random.Generator, size: int) -> Case:
    return Case(tuple(float(x) for x in rng.uniform(0, 1, 3).round(2)))


def _draw_two(rng: np.random.Generator, size: int) -> Case:
    a, b, c, d = (float(x) for x in rng.uniform(0.3, 0.9, 4).round(3))
    high, low = (max(a, b) + 0.01, min(a, b)), (max(c, d) + 0.01, min(c, d))
    if size % 3 == 2:  # one is better in both
        return Case(((high[0], low[0]), (high[1], low[1])))
    return Case(((high[0], low[1]), (high[1], low[0])))


PARTS = (
    Part(
        "score",
        _score,
        Case((0.80, 0.72, 0.7)),
        0.776,
        _draw,
        (
            Mistake(
                "weights swapped",
                lambda quality, retention, weight: _score(retention, quality, weight),
                "The weights are swapped: `weight` belongs to task quality, the rest to retention.",
            ),
            Mistake(
                "plain mean",
                lambda quality, retention, weight: _score(quality, retention, 0.5),
                "This is the plain mean; the weight isn't used.",
            ),
            Mistake(
                "weights that don't add up to 1",
                lambda quality, retention, weight: weight * quality + retention,
                "Retention has weight 1 besides: the weights have to add up to 1, or scores of "
                "different weights can't be compared.",
            ),
            Mistake(
                "quality alone",
                lambda quality, retention, weight: weight * quality,
                "Retention is missing: a model that forgot everything else would score the same.",
            ),
            Mistake(
                "geometric mean",
                lambda quality, retention, weight: float(
                    quality**weight * retention ** (1 - weight)
                ),
                "This is the weighted geometric mean. It has its uses; the question is for the "
                "arithmetic one.",
            ),
            Mistake(
                "weight unchecked",
                lambda quality, retention, weight: weight * quality + (1 - weight) * retention,
                "A weight of 1.2 gives retention a negative one: forgetting would be rewarded. "
                "Raise a `ValueError` unless it is from 0 to 1.",
            ),
        ),
        (Case((0.8, 0.7, 1.2), "the weight is over 1"), Case((0.8, 0.7, 1.0), "the weight is 1")),
    ),
    Part(
        "turning_weight",
        _turn,
        Case(((0.9, 0.6), (0.8, 0.7))),
        0.5,
        _draw_two,
        (
            Mistake(
                "weight of retention",
                lambda first, second: _turn(first[::-1], second[::-1]),
                "This is the weight of retention at which the winner changes; the question is for "
                "that of quality.",
            ),
            Mistake(
                "ratio of differences",
                lambda first, second: (
                    None
                    if _turn(first, second) is None
                    else (second[1] - first[1]) / (first[0] - second[0])
                ),
                "This is the ratio of the two differences, not a weight. At the turn "
                "w · gain = (1 − w) · loss, so w = loss / (gain + loss).",
            ),
            Mistake(
                "no winner in both",
                lambda first, second: (
                    (second[1] - first[1]) / ((first[0] - second[0]) + (second[1] - first[1]))
                    if (first[0] - second[0]) + (second[1] - first[1])
                    else 0.5
                ),
                "One of the two is better in both, or not worse in one: no weight strictly between "
                "0 and 1 turns the decision, and a number says the opposite. Return None.",
            ),
            Mistake(
                "half by default",
                lambda first, second: 0.5 if _turn(first, second) is None else _turn(first, second),
                "Where no weight turns the decision there is no number to return: None.",
            ),
            Mistake(
                "difference of scores",
                lambda first, second: sum(first) / 2 - sum(second) / 2,
                "This is the difference of the mean scores; the question is for the weight at "
                "which the two scores are equal.",
            ),
        ),
        (
            Case(((0.9, 0.7), (0.8, 0.6)), "the first is better in both"),
            Case(((0.8, 0.7), (0.8, 0.6)), "they are equal in quality"),
            Case(((0.8, 0.7), (0.8, 0.7)), "they are equal in both"),
        ),
    ),
)
