"""8. The DPO loss, from log-probabilities and from logits."""

from __future__ import annotations

import math

import numpy as np

from tunemath.course.exercise import Case, Mistake, Part

__all__ = ["PARTS"]


def _softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _margin(pc, pr, rc, rr):
    return (pc - rc) - (pr - rr)


def _dpo(pc, pr, rc, rr, beta):
    if beta <= 0:
        raise ValueError("beta must be positive")
    return _softplus(-beta * _margin(pc, pr, rc, rr))


def _sequence(logits, ids, mask, shift=1):
    total, count = 0.0, 0
    for t in range(shift, len(ids)):
        if mask[t]:
            row = [float(x) for x in logits[t - shift]]
            top = max(row)
            total += row[ids[t]] - top - math.log(math.fsum(math.exp(x - top) for x in row))
            count += 1
    if not count:
        raise ValueError("no token is of the answer")
    return total


def _draw(rng: np.random.Generator, size: int) -> Case:
    return Case((*(float(x) for x in rng.normal(-6 * size, 2, 4).round(2)), 0.1 * (1 + size % 4)))


def _draw_sequence(rng: np.random.Generator, size: int) -> Case:
    length, vocabulary = 3 + size, 3 + size
    mask = np.zeros(length, int)
    mask[int(rng.integers(1, length - 1)) : length - int(size > 2)] = 1
    return Case(
        (
            rng.normal(0, 2, (length, vocabulary)).round(2),
            rng.integers(0, vocabulary, length),
            mask,
        )
    )


def _checked(loss):
    def dpo(pc, pr, rc, rr, beta):
        if beta <= 0:
            raise ValueError
        return loss(pc, pr, rc, rr, beta)

    return dpo


def _naive(x):
    with np.errstate(over="ignore"):
        return float(np.log(1 + np.exp(x)))


def _mean(logits, ids, mask):
    return _sequence(logits, ids, mask) / max(1, int(np.sum(np.asarray(mask)[1:])))


PARTS = (
    Part(
        "dpo_loss",
        _dpo,
        Case((-4.0, -6.0, -5.0, -5.5, 0.2)),
        0.5543552444685271,
        _draw,
        (
            Mistake(
                "without the reference",
                _checked(lambda pc, pr, rc, rr, beta: _softplus(-beta * (pc - pr))),
                "The reference isn't in the margin: this pushes the chosen answer up whatever the "
                "reference thinks of it. The margin is (π_c − ρ_c) − (π_r − ρ_r).",
            ),
            Mistake(
                "sign turned",
                _checked(lambda pc, pr, rc, rr, beta: _softplus(beta * _margin(pc, pr, rc, rr))),
                "The loss grows with the margin: it would teach the rejected answer. "
                "−log σ(x) = log(1 + exp(−x)).",
            ),
            Mistake(
                "without beta",
                _checked(lambda pc, pr, rc, rr, beta: _softplus(-_margin(pc, pr, rc, rr))),
                "β is missing in front of the margin.",
            ),
            Mistake(
                "divided by beta",
                _checked(lambda pc, pr, rc, rr, beta: _softplus(-_margin(pc, pr, rc, rr) / beta)),
                "The margin is divided by β; it is multiplied by it.",
            ),
            Mistake(
                "beta outside",
                _checked(lambda pc, pr, rc, rr, beta: beta * _softplus(-_margin(pc, pr, rc, rr))),
                "β stands outside the logarithm. It scales the margin, inside σ.",
            ),
            Mistake(
                "the margin itself",
                _checked(lambda pc, pr, rc, rr, beta: beta * _margin(pc, pr, rc, rr)),
                "This is the scaled margin. The loss is −log σ of it.",
            ),
            Mistake(
                "the probability",
                _checked(
                    lambda pc, pr, rc, rr, beta: math.exp(
                        -_softplus(-beta * _margin(pc, pr, rc, rr))
                    )
                ),
                "This is σ of the scaled margin, the probability that the chosen answer wins. The "
                "loss is its negative logarithm.",
            ),
            Mistake(
                "chosen and rejected crossed",
                _checked(lambda pc, pr, rc, rr, beta: _softplus(-beta * ((pc - rr) - (pr - rc)))),
                "The chosen answer is compared with the reference's rejected one. Each answer "
                "belongs to its own reference.",
            ),
            Mistake(
                "overflow",
                _checked(lambda pc, pr, rc, rr, beta: _naive(-beta * _margin(pc, pr, rc, rr))),
                "exp of a large number overflows, and the loss is infinite where it is just "
                "large. `np.logaddexp(0, -x)` is log(1 + exp(−x)) without it.",
            ),
            Mistake(
                "beta unchecked",
                lambda pc, pr, rc, rr, beta: _softplus(-beta * _margin(pc, pr, rc, rr)),
                "With β = 0 the loss is ln 2 whatever the model does, and nothing is learnt: "
                "raise a `ValueError` unless β is positive.",
            ),
        ),
        (
            Case((-900.0, -10.0, -5.0, -5.0, 1.0), "the margin is far below 0"),
            Case((-4.0, -6.0, -5.0, -5.5, 0.0), "beta is 0"),
        ),
    ),
    Part(
        "sequence_log_prob",
        _sequence,
        Case((np.log([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]), np.array([0, 1, 0]), [0, 1, 1])),
        math.log(0.5) + math.log(0.25),
        _draw_sequence,
        (
            Mistake(
                "mean instead of sum",
                _mean,
                "This is the mean over the answer's tokens. The probability of an answer is the "
                "product of its tokens', so the logarithms are added; DPO's theory is of sums.",
            ),
            Mistake(
                "not shifted",
                lambda logits, ids, mask: _sequence(logits, ids, mask, shift=0),
                "Each token is read off the logits at its own place. The logits at t predict "
                "token t + 1: `logits[:-1]` goes with `ids[1:]`.",
            ),
            Mistake(
                "prompt included",
                lambda logits, ids, mask: _sequence(logits, ids, np.ones(len(ids))),
                "The prompt's tokens are added too. Only those of the answer count.",
            ),
            Mistake(
                "mask not shifted",
                lambda logits, ids, mask: _sequence(logits, ids, [0, *mask[:-1]]),
                "The mask is taken with the logits' places, `mask[:-1]`, so the first answer token "
                "is lost and the one after the answer counted. It is aligned with the tokens: "
                "`mask[1:]`, as `ids[1:]`.",
            ),
            Mistake(
                "logits instead of log-probabilities",
                lambda logits, ids, mask: float(
                    sum(logits[t - 1][ids[t]] for t in range(1, len(ids)) if mask[t])
                ),
                "Logits are added, not log-probabilities: subtract log Σ exp of each row.",
            ),
            Mistake(
                "overflow",
                lambda logits, ids, mask: float(
                    sum(
                        np.log(
                            np.exp(np.asarray(logits[t - 1]))[ids[t]]
                            / np.exp(np.asarray(logits[t - 1])).sum()
                        )
                        for t in range(1, len(ids))
                        if mask[t]
                    )
                ),
                "exp(1000) overflows. Subtract the row's maximum first; the log-probability "
                "doesn't change.",
            ),
            Mistake(
                "zero for an empty answer",
                lambda logits, ids, mask: (
                    _sequence(logits, ids, mask) if np.sum(np.asarray(mask)[1:]) else 0.0
                ),
                "An answer without tokens gets 0, that is probability 1, and would win every "
                "comparison. Raise a `ValueError`.",
            ),
        ),
        (
            Case(
                (np.array([[1000.0, -1000.0], [0.0, 0.0]]), np.array([0, 1]), [0, 1]),
                "the logits are large",
            ),
            Case((np.zeros((2, 2)), np.array([0, 1]), [0, 0]), "the answer is empty"),
        ),
    ),
)
