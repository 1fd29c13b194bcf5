"""4. The update that LoRA's factors stand for."""

from __future__ import annotations

import numpy as np

from tunemath.course.exercise import Case, Mistake, Part

__all__ = ["PARTS"]


def _delta(A, B, alpha):
    rank, d_in = np.shape(A)
    d_out, other = np.shape(B)
    if other != rank:
        raise ValueError("the ranks differ")
    delta = np.zeros((d_out, d_in))
    for i in range(d_out):
        for j in range(d_in):
            delta[i, j] = alpha / rank * sum(float(B[i, k]) * float(A[k, j]) for k in range(rank))
    return delta


def _merged(W, A, B, alpha):
    return (np.asarray(W, np.float64) + _delta(A, B, alpha)).astype(np.float16)


def _survived(W, A, B, alpha):
    delta = _delta(A, B, alpha)
    moved = _merged(W, A, B, alpha).astype(np.float64) - np.asarray(W, np.float64)
    return float(np.sum(moved * delta) / np.sum(delta * delta))


def _merge(W, A, B, alpha):
    if not np.any(_delta(A, B, alpha)):
        raise ValueError("the update is zero")
    return _merged(W, A, B, alpha), _survived(W, A, B, alpha)


def _factors(rng: np.random.Generator, d_in: int, d_out: int, rank: int):
    return rng.normal(0, 1, (rank, d_in)).round(2), rng.normal(0, 1, (d_out, rank)).round(2)


def _draw(rng: np.random.Generator, size: int) -> Case:
    d_in, d_out = (int(rng.integers(2, 3 + size)) for _ in range(2))
    if size % 2:
        d_out = d_in
    rank = int(rng.integers(2, 4))
    if size % 4 == 3:
        d_in = d_out = rank
    return Case((*_factors(rng, d_in, d_out, rank), float(rng.integers(5, 33))))


def _draw_merge(rng: np.random.Generator, size: int) -> Case:
    A, B, alpha = _draw(rng, size).arguments
    W = rng.normal(0, 2, (len(B), A.shape[1])).astype(np.float16)
    return Case((W, A, 0.003 * B, alpha))


def _with(change):
    """Return a merge whose update is another one."""

    def merge(W, A, B, alpha):
        delta = change(A, B, alpha)
        full = np.asarray(W, np.float64) + delta
        after = full.astype(np.float16)
        moved = after.astype(np.float64) - np.asarray(W, np.float64)
        return after, float(np.sum(moved * delta) / np.sum(delta * delta))

    return merge


def _rounded_first(W, A, B, alpha):
    delta = _delta(A, B, alpha)
    after = np.asarray(W, np.float16) + delta.astype(np.float16)
    moved = after.astype(np.float64) - np.asarray(W, np.float64)
    return after, float(np.sum(moved * delta) / np.sum(delta * delta))


def _by_norms(W, A, B, alpha):
    delta = _delta(A, B, alpha)
    moved = _merged(W, A, B, alpha).astype(np.float64) - np.asarray(W, np.float64)
    return _merged(W, A, B, alpha), float(np.linalg.norm(moved) / np.linalg.norm(delta))


_RNG = np.random.default_rng(7)
_A, _B = _factors(_RNG, 10, 12, 3)
_COARSE = (np.full((2, 2), 1024.0, np.float16), np.eye(2), 0.1 * np.ones((2, 2)), 2.0)

PARTS = (
    Part(
        "lora_update",
        _delta,
        Case((_A, _B, 6.0)),
        2.0 * _B @ _A,
        _draw,
        (
            Mistake(
                "without the scale",
                lambda A, B, alpha: B @ A,
                "This is B A without its scale: s = α / r, with r the number of rows of A.",
            ),
            Mistake(
                "scaled by alpha",
                lambda A, B, alpha: alpha * (B @ A),
                "The scale is α / r, not α: so that the update keeps its size when r is changed.",
            ),
            Mistake(
                "rank-stabilised scale",
                lambda A, B, alpha: alpha / np.sqrt(len(A)) * (B @ A),
                "α / √r is rsLoRA's scale. LoRA's is α / r.",
            ),
            Mistake(
                "divided by the width",
                lambda A, B, alpha: alpha / A.shape[1] * (B @ A),
                "The scale is divided by d_in. The rank is the number of rows of A.",
            ),
            Mistake(
                "transposed",
                lambda A, B, alpha: alpha / len(A) * (B @ A).T,
                "This is the transpose. W is (d_out, d_in), and so is its update.",
            ),
            Mistake(
                "A and B swapped",
                lambda A, B, alpha: alpha / len(A) * (A @ B),
                "This is A B. The input goes through A first, so ΔW = s · B A. With A (r, d_in) "
                "and B (d_out, r) the order shows in the shapes, unless everything is square.",
            ),
        ),
        (Case((np.ones((2, 3)), np.ones((3, 4)), 2.0), "A has rank 2, B rank 4"),),
    ),
    Part(
        "merge",
        _merge,
        Case(_COARSE),
        (np.full((2, 2), 1024.0, np.float16), 0.0),
        _draw_merge,
        (
            Mistake(
                "without the scale",
                _with(lambda A, B, alpha: B @ A),
                "The update is added without its scale α / r.",
            ),
            Mistake(
                "applied twice",
                _with(lambda A, B, alpha: 2 * _delta(A, B, alpha)),
                "The update is in the weights twice.",
            ),
            Mistake(
                "subtracted",
                _with(lambda A, B, alpha: -_delta(A, B, alpha)),
                "The update is subtracted; that is how one unmerges.",
            ),
            Mistake(
                "update rounded first",
                _rounded_first,
                "The update is rounded to float16 before it is added, so it is rounded twice. Add "
                "in full precision and round the sum once.",
            ),
            Mistake(
                "ratio of norms",
                _by_norms,
                "The ratio of the norms isn't the share that survived: noise from rounding has a "
                "norm too. Project what was added on what should have been: ⟨W′ − W, ΔW⟩ / ‖ΔW‖².",
            ),
            Mistake(
                "not rounded",
                lambda W, A, B, alpha: (np.asarray(W, np.float64) + _delta(A, B, alpha), 1.0),
                "Nothing was rounded: the merged weights are stored as W was, in float16, and what "
                "is lost there is what the share has to tell.",
            ),
        ),
        (
            Case(
                (np.ones((2, 2), np.float16), np.ones((1, 2)), np.zeros((2, 1)), 1.0),
                "the update is zero: no share of nothing can survive",
            ),
        ),
        tolerance=1e-5,
    ),
)
