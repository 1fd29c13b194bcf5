"""2. How far the model moved: KL."""

from __future__ import annotations

import math

import numpy as np

from tunemath.course.exercise import Case, Mistake, Part

__all__ = ["PARTS"]


def _kl(tuned, base):
    total = 0.0
    for t, b in zip(tuned, base, strict=True):
        if t > 0:
            total += math.inf if b == 0 else float(t) * (math.log(t) - math.log(b))
    return total


def _movement(tuned, base, mask):
    sums, count = 0.0, 0
    for t, b, counts in zip(tuned, base, mask, strict=True):
        if counts:
            logs = [[x - max(row) for x in map(float, row)] for row in (t, b)]
            logs = [[x - math.log(math.fsum(map(math.exp, row))) for x in row] for row in logs]
            sums += math.fsum(math.exp(x) * (x - y) for x, y in zip(*logs, strict=True))
            count += 1
    if not count:
        raise ValueError("no position is of the answer")
    return sums / count


def _draw(rng: np.random.Generator, size: int) -> Case:
    return Case(tuple(rng.dirichlet(np.ones(size + 1)) for _ in range(2)))


def _draw_logits(rng: np.random.Generator, size: int) -> Case:
    shape = (size + 1, 3 + size)
    base = rng.normal(0, 3, shape)
    mask = rng.integers(0, 2, size + 1)
    mask[0] = 1
    return Case((base + rng.normal(0, 1, shape), base, mask))


def _softmax(x):
    x = np.exp(np.asarray(x, float))
    return x / x.sum(-1, keepdims=True)


def _rows(tuned, base):
    t, b = (np.asarray(x, float) - np.max(x, -1, keepdims=True) for x in (tuned, base))
    t, b = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (t, b))
    return (np.exp(t) * (t - b)).sum(-1)


def _cross(p, q):
    return float(-np.sum(np.asarray(p) * np.log(q)))


def _entropy(p):
    return -sum(float(x) * math.log(x) for x in p if x > 0)


def _middle(tuned, base):
    mid = [(t + b) / 2 for t, b in zip(tuned, base, strict=True)]
    return (_kl(tuned, mid) + _kl(base, mid)) / 2


PARTS = (
    Part(
        "kl",
        _kl,
        Case((np.array([0.4, 0.4, 0.2]), np.array([0.6, 0.3, 0.1]))),
        0.09151622184943575,
        _draw,
        (
            Mistake(
                "reversed",
                lambda tuned, base: _kl(base, tuned),
                "This is KL(base ‖ tuned). The movement of a fine-tune is KL(tuned ‖ base): the "
                "average is taken over what the tuned model says, so the weights in front of the "
                "logarithm are the tuned model's.",
            ),
            Mistake(
                "base-2 logarithm",
                lambda tuned, base: _kl(tuned, base) / math.log(2),
                "This is in bits. Here, as in all losses, logarithms are natural: nats.",
            ),
            Mistake(
                "no weights",
                lambda tuned, base: float(np.sum(np.log(np.asarray(tuned) / np.asarray(base)))),
                "The logarithms are added up as they are; each has to be weighed with how often "
                "the tuned model says that token, p_tuned(x).",
            ),
            Mistake(
                "cross-entropy",
                lambda tuned, base: _cross(tuned, base),
                "This is the cross-entropy −Σ p log q. It isn't 0 when nothing moved: the tuned "
                "model's own entropy has to be taken off.",
            ),
            Mistake(
                "symmetrised",
                _middle,
                "This is the Jensen–Shannon divergence, to the mean of the two. KL has a "
                "direction.",
            ),
            Mistake(
                "sign",
                lambda tuned, base: -_kl(tuned, base),
                "The sign is turned: a KL is never negative. The ratio is tuned over base.",
            ),
            Mistake(
                "clipped",
                lambda tuned, base: _kl(np.clip(tuned, 1e-12, None), np.clip(base, 1e-12, None)),
                "Clipping makes the KL finite where it isn't: with a base that gives 0 to what the "
                "tuned model says, the KL is infinite, and a finite number here depends only on "
                "where you clipped.",
            ),
            Mistake(
                "zeros not treated",
                lambda tuned, base: float(
                    np.sum(np.asarray(tuned) * np.log(np.asarray(tuned) / np.asarray(base)))
                ),
                "0 · log 0 is NaN on a computer, and 0 in the definition: what is never said adds "
                "nothing. Sum over the tokens with p_tuned(x) > 0 alone.",
            ),
            Mistake(
                "zeros of the base left out",
                lambda tuned, base: sum(
                    float(t) * math.log(t / b)
                    for t, b in zip(tuned, base, strict=True)
                    if t > 0 and b > 0
                ),
                "Tokens that the base gives 0 to are left out, so the answer is finite, even "
                "negative. What the tuned model says and the base never would makes it infinite.",
            ),
        ),
        (
            Case((np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.5, 0.25])), "tuned has a zero"),
            Case((np.array([0.5, 0.5]), np.array([1.0, 0.0])), "the base has a zero"),
            Case((np.array([0.0, 1.0]), np.array([0.0, 1.0])), "both have a zero, nothing moved"),
        ),
    ),
    Part(
        "movement",
        _movement,
        Case((np.log([[0.4, 0.4, 0.2]]), np.log([[0.6, 0.3, 0.1]]), np.array([1]))),
        0.09151622184943575,
        _draw_logits,
        (
            Mistake(
                "reversed",
                lambda tuned, base, mask: float(_rows(base, tuned)[np.asarray(mask) == 1].mean()),
                "This is KL(base ‖ tuned); the movement is KL(tuned ‖ base).",
            ),
            Mistake(
                "sum over positions",
                lambda tuned, base, mask: float(_rows(tuned, base)[np.asarray(mask) == 1].sum()),
                "This is the sum over the answer's positions: nats an answer, not nats a token. "
                "Divide by how many there are.",
            ),
            Mistake(
                "all positions",
                lambda tuned, base, mask: float(_rows(tuned, base).mean()),
                "All positions are counted, the prompt's too. Count those where the model answers.",
            ),
            Mistake(
                "KL of the mean distributions",
                lambda tuned, base, mask: _kl(
                    _softmax(np.asarray(tuned)[np.asarray(mask) == 1]).mean(0),
                    _softmax(np.asarray(base)[np.asarray(mask) == 1]).mean(0),
                ),
                "This averages the distributions first and takes one KL of the means: movements in "
                "opposite directions cancel. Take the KL of each position, then the mean.",
            ),
            Mistake(
                "mean over the vocabulary",
                lambda tuned, base, mask: float(
                    _rows(tuned, base)[np.asarray(mask) == 1].mean() / np.shape(tuned)[-1]
                ),
                "The terms of a position are averaged over the vocabulary; they have to be added. "
                "`F.kl_div` with reduction='mean' does this.",
            ),
            Mistake(
                "overflow",
                lambda tuned, base, mask: float(
                    np.sum(
                        _softmax(tuned) * (np.log(_softmax(tuned)) - np.log(_softmax(base))), -1
                    )[np.asarray(mask) == 1].mean()
                ),
                "exp(1000) overflows, exp(−1000) is 0 and its logarithm −∞. Subtract the row's "
                "maximum and stay with logarithms: log p = x − max − log Σ exp(x − max).",
            ),
        ),
        (
            Case(
                (np.array([[1000.0, 0.0, -1000.0]]), np.array([[990.0, 0.0, 0.0]]), np.array([1])),
                "the logits are large",
            ),
            Case(
                (np.zeros((2, 3)), np.zeros((2, 3)), np.array([0, 0])),
                "no position is of the answer",
            ),
        ),
    ),
)
