"""7. What a prefix of keys and values costs."""

from __future__ import annotations

import numpy as np

from tunemath.course.exercise import Case, Mistake, Part

__all__ = ["PARTS"]

_LLAMA_8B = {"layers": 32, "heads": 32, "kv_heads": 8, "head_dim": 128}
_OLD = {"layers": 24, "heads": 16, "kv_heads": 16, "head_dim": 64}


def _count(config, length):
    total = 0
    for _ in range(config["layers"]):
        for _ in ("keys", "values"):
            total += length * config["kv_heads"] * config["head_dim"]
    return total


def _bytes(config, length, tokens, batch, width):
    if length + tokens < 1 or batch < 1:
        raise ValueError("nothing is cached")
    return batch * (length + tokens) * _count(config, 1) * width


def _config(rng: np.random.Generator, size: int):
    kv = int(rng.integers(1, 2 + size))
    return {
        "layers": int(rng.integers(2, 3 + 2 * size)),
        "heads": kv * int(rng.integers(2, 5)),
        "kv_heads": kv,
        "head_dim": int(rng.choice([32, 64, 80, 128])),
    }


def _draw(rng: np.random.Generator, size: int) -> Case:
    return Case((_config(rng, size), int(rng.integers(1, 8 * (size + 1)))))


def _draw_bytes(rng: np.random.Generator, size: int) -> Case:
    tokens, batch = int(rng.integers(2, 64 * (size + 1))), int(rng.integers(2, 4 + size))
    return Case((*_draw(rng, size).arguments, tokens, batch, int(rng.choice([2, 4]))))


def _other(**changes):
    """Return the count on a changed configuration."""

    def count(config, length):
        return _count(
            {**config, **{key: change(config) for key, change in changes.items()}}, length
        )

    return count


PARTS = (
    Part(
        "prefix_parameters",
        _count,
        Case((_OLD, 16)),
        786_432,
        _draw,
        (
            Mistake(
                "keys only",
                lambda config, length: _count(config, length) // 2,
                "This is the keys, or the values: there are both, so the factor 2 is missing.",
            ),
            Mistake(
                "heads instead of KV heads",
                _other(kv_heads=lambda config: config["heads"]),
                "All query heads are counted. Under grouped-query attention keys and values have "
                "kv_heads of them; several query heads share one.",
            ),
            Mistake(
                "one layer",
                _other(layers=lambda config: 1),
                "This is one layer's prefix; every layer has its own.",
            ),
            Mistake(
                "a soft prompt",
                lambda config, length: length * config["heads"] * config["head_dim"],
                "This is a soft prompt, vectors in front of the first layer's input. A prefix has "
                "keys and values in every layer.",
            ),
            Mistake(
                "head_dim left out",
                lambda config, length: 2 * config["layers"] * length * config["kv_heads"],
                "Each head's key has head_dim numbers.",
            ),
        ),
        (Case((_LLAMA_8B, 16), "grouped-query attention: 32 heads, 8 for keys and values"),),
    ),
    Part(
        "cache_bytes",
        _bytes,
        Case((_LLAMA_8B, 16, 1008, 1, 2)),
        134_217_728,
        _draw_bytes,
        (
            Mistake(
                "prefix left out",
                lambda config, length, tokens, batch, width: (
                    batch * tokens * _count(config, 1) * width
                ),
                "The prefix itself isn't counted. It lies in the cache like tokens that were read.",
            ),
            Mistake(
                "one sequence",
                lambda config, length, tokens, batch, width: (
                    (length + tokens) * _count(config, 1) * width
                ),
                "This is one sequence; each of the batch has a cache of its own, its copy of the "
                "prefix included.",
            ),
            Mistake(
                "prefix once",
                lambda config, length, tokens, batch, width: (
                    (length + batch * tokens) * _count(config, 1) * width
                ),
                "The prefix is counted once for the batch. As parameters it is there once; in the "
                "cache every sequence has its copy.",
            ),
            Mistake(
                "numbers instead of bytes",
                lambda config, length, tokens, batch, width: (
                    batch * (length + tokens) * _count(config, 1)
                ),
                "These are numbers, not bytes: each takes `width` of them, 2 in bfloat16.",
            ),
            Mistake(
                "heads instead of KV heads",
                lambda config, length, tokens, batch, width: (
                    batch
                    * (length + tokens)
                    * _count({**config, "kv_heads": config["heads"]}, 1)
                    * width
                ),
                "All query heads are counted; the cache holds keys and values, kv_heads of them.",
            ),
        ),
        (Case((_LLAMA_8B, 0, 0, 1, 2), "no token at all"),),
    ),
)
