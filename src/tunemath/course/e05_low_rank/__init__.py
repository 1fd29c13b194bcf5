"""5. The nearest matrix of a given rank."""

from __future__ import annotations

import numpy as np

from tunemath.course.exercise import Case, Mistake, Part

__all__ = ["PARTS"]


def _parts(matrix):
    return np.linalg.svd(np.asarray(matrix, float), full_matrices=False)


def _low_rank(matrix, rank):
    u, s, vt = _parts(matrix)
    if not 1 <= rank <= len(s):
        raise ValueError("no such rank")
    near = sum(s[k] * np.outer(u[:, k], vt[k]) for k in range(rank))
    total = float(np.sqrt(np.sum(s * s)))
    return near, float(np.sqrt(np.sum(s[rank:] ** 2))) / total if total else 0.0


def _smallest(matrix, error):
    s = _parts(matrix)[1]
    total = np.sum(s * s)
    rest = total
    for rank, value in enumerate(s):
        if rest <= error * error * total * (1 + 1e-12):
            return rank
        rest -= value * value
    return len(s)


def _spectrum(rng: np.random.Generator, m: int, n: int, decay: float):
    u, v = (np.linalg.qr(rng.normal(size=(k, min(m, n))))[0] for k in (m, n))
    return ((u * decay ** np.arange(min(m, n))) @ v.T).round(4)


def _draw(rng: np.random.Generator, size: int) -> Case:
    m, n = (int(rng.integers(3, 4 + size)) for _ in range(2))
    return Case((_spectrum(rng, m, n, 0.7), int(rng.integers(1, min(m, n)))))


def _draw_error(rng: np.random.Generator, size: int) -> Case:
    m, n = (int(rng.integers(4, 6 + size)) for _ in range(2))
    return Case((_spectrum(rng, m, n, 0.75), round(float(rng.uniform(0.2, 0.7)), 2)))


def _wrong(pick):
    def low_rank(matrix, rank):
        u, s, vt = _parts(matrix)
        if not 1 <= rank <= len(s):
            raise ValueError
        return pick(np.asarray(matrix, float), u, s, vt, rank)

    return low_rank


def _near(u, s, vt, rank):
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def _first(shares, level):
    return int(np.argmax(shares >= level - 1e-12)) + 1


def _from_shares(power, level):
    def smallest(matrix, error):
        s = _parts(matrix)[1] ** power
        return _first(np.cumsum(s) / np.sum(s), level(error))

    return smallest


_KNOWN = np.diag([4.0, 3.0, 0.0])

PARTS = (
    Part(
        "low_rank",
        _low_rank,
        Case((_KNOWN, 1)),
        (np.diag([4.0, 0.0, 0.0]), 0.6),
        _draw,
        (
            Mistake(
                "squared error",
                _wrong(lambda m, u, s, vt, r: (_near(u, s, vt, r), _low_rank(m, r)[1] ** 2)),
                "This is the squared error, one less the energy kept. Take the root.",
            ),
            Mistake(
                "absolute error",
                _wrong(
                    lambda m, u, s, vt, r: (
                        _near(u, s, vt, r),
                        float(np.linalg.norm(s[r:])),
                    )
                ),
                "This error is absolute; divide it by the matrix's own Frobenius norm.",
            ),
            Mistake(
                "spectral norm",
                _wrong(
                    lambda m, u, s, vt, r: (
                        _near(u, s, vt, r),
                        float((s[r] if r < len(s) else 0.0) / s[0]),
                    )
                ),
                "This is the error in the spectral norm, σ at r + 1 over σ₁ "
                "(`np.linalg.norm(·, 2)`). The question is after the Frobenius norm, of all that "
                "is left out.",
            ),
            Mistake(
                "singular values not squared",
                _wrong(lambda m, u, s, vt, r: (_near(u, s, vt, r), float(s[r:].sum() / s.sum()))),
                "The singular values are added up as they are; the Frobenius norm is the root of "
                "the sum of their squares.",
            ),
            Mistake(
                "smallest kept",
                _wrong(
                    lambda m, u, s, vt, r: (
                        (u[:, -r:] * s[-r:]) @ vt[-r:],
                        float(np.linalg.norm(s[:-r]) / np.linalg.norm(s)),
                    )
                ),
                "The smallest singular values are kept. They come in descending order: the first "
                "r are the ones.",
            ),
            Mistake(
                "one too many",
                _wrong(
                    lambda m, u, s, vt, r: (
                        _near(u, s, vt, r + 1),
                        float(np.linalg.norm(s[r + 1 :]) / np.linalg.norm(s)),
                    )
                ),
                "One direction too many is kept: this is the answer for rank + 1.",
            ),
            Mistake(
                "rank unchecked",
                lambda matrix, rank: (
                    _near(*_parts(matrix), rank),
                    float(np.linalg.norm(_parts(matrix)[1][rank:]) / np.linalg.norm(matrix)),
                ),
                "A slice past the end is cut without a word, and rank 0 gives zeros: raise a "
                "`ValueError` for a rank that the matrix can't have.",
            ),
            Mistake(
                "zero matrix",
                _wrong(
                    lambda m, u, s, vt, r: (
                        _near(u, s, vt, r),
                        float(np.linalg.norm(s[r:]) / np.linalg.norm(s)),
                    )
                ),
                "0 divided by 0: an update of zeros is approximated without any error, 0.",
            ),
        ),
        (
            Case((_KNOWN, 4), "the rank is more than the matrix has sides"),
            Case((_KNOWN, 0), "rank 0"),
            Case((np.zeros((2, 3)), 1), "the matrix is zero"),
        ),
    ),
    Part(
        "rank_for_error",
        _smallest,
        Case((_KNOWN, 0.6)),
        1,
        _draw_error,
        (
            Mistake(
                "one too many",
                lambda matrix, error: _smallest(matrix, error) + 1,
                "One more than needed: the error at rank r counts the values after the first r.",
            ),
            Mistake(
                "one too few",
                lambda matrix, error: _smallest(matrix, error) - 1,
                "One too few: an index starts at 0, a rank at 1.",
            ),
            Mistake(
                "energy for error",
                _from_shares(2, lambda error: 1 - error),
                "This keeps a share of 1 − error of the energy. Energy is squared: an error of 0.1 "
                "leaves out a share of 0.01.",
            ),
            Mistake(
                "values not squared",
                _from_shares(1, lambda error: 1 - error),
                "The share is of the singular values' sum. The Frobenius error is made of squares.",
            ),
            Mistake(
                "values against the largest",
                lambda matrix, error: int(np.sum(_parts(matrix)[1] > error * _parts(matrix)[1][0])),
                "This counts values above error · σ₁. Many small ones together can be more than "
                "the error: compare the root of the sum of all that is left out.",
            ),
        ),
        (
            Case((np.arange(25.0).reshape(5, 5), 1e-6), "a matrix of rank 2 exactly"),
            Case((np.diag([2.0, 1.0]), 1.0), "an error of 1: nothing has to be kept"),
        ),
    ),
)
