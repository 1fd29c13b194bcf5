"""3. How many parameters LoRA trains."""

from __future__ import annotations

import numpy as np

from tunemath.course.exercise import Case, Mistake, Part

__all__ = ["PARTS"]

_SIZES = (64, 128, 256, 512, 576, 1024, 1536, 2048, 4096, 11008, 14336)
_LLAMA_8B = {
    "hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "head_dim": 128, "ffn": 14336,
}  # fmt: skip


def _shapes(config, heads="kv_heads", head_dim=None):
    hidden, ffn = config["hidden"], config["ffn"]
    width = head_dim or config["head_dim"]
    queries, keys = config["heads"] * width, config[heads] * width
    return {
        "q": (hidden, queries),
        "k": (hidden, keys),
        "v": (hidden, keys),
        "o": (queries, hidden),
        "gate": (hidden, ffn),
        "up": (hidden, ffn),
        "down": (ffn, hidden),
    }


def _model(config, targets, rank, layers=None, shapes=None):
    shapes = shapes or _shapes(config)
    total = 0
    for target in targets:
        if target not in shapes:
            raise ValueError(f"no {target} in a layer")
        total += rank * sum(shapes[target])
    return total * (config["layers"] if layers is None else layers)


def _draw(rng: np.random.Generator, size: int) -> Case:
    d_in, d_out = (int(rng.choice(_SIZES[: size + 3])) for _ in range(2))
    return Case((d_in, d_out, int(2 ** rng.integers(0, 7))))


def _draw_model(rng: np.random.Generator, size: int) -> Case:
    kv = int(2 ** rng.integers(0, 3))
    config = {
        "hidden": int(64 * rng.integers(2, 2 + size)),
        "layers": int(rng.integers(2, 2 + 2 * size)),
        "heads": kv * int(rng.integers(2, 5)),
        "kv_heads": kv,
        "head_dim": int(rng.choice([32, 48, 80])),
        "ffn": int(160 * rng.integers(2, 2 + size)),
    }
    names = list(_shapes(config))
    chosen = rng.permutation(names)[: rng.integers(1, 8)]
    targets = [name for name in names if name in {"k", *chosen}]
    return Case((config, targets, int(2 ** rng.integers(0, 6))))


PARTS = (
    Part(
        "lora_parameters",
        lambda d_in, d_out, rank: sum(rank for _ in range(d_in)) + d_out * rank,
        Case((4096, 4096, 8)),
        65_536,
        _draw,
        (
            Mistake(
                "the whole matrix",
                lambda d_in, d_out, rank: d_in * d_out,
                "This is the size of W itself, which is frozen. Only A (r × d_in) and B "
                "(d_out × r) are trained.",
            ),
            Mistake(
                "one factor only",
                lambda d_in, d_out, rank: rank * d_in,
                "This is A alone. B (d_out × r) is trained too.",
            ),
            Mistake(
                "B only",
                lambda d_in, d_out, rank: rank * d_out,
                "This is B alone. A (r × d_in) is trained too.",
            ),
            Mistake(
                "square assumed",
                lambda d_in, d_out, rank: 2 * rank * d_in,
                "This is right for square matrices only: B has d_out rows, not d_in.",
            ),
            Mistake(
                "product of sides",
                lambda d_in, d_out, rank: rank * d_in * d_out,
                "The sides are multiplied; A and B are two matrices, whose sizes are added.",
            ),
            Mistake(
                "without the rank",
                lambda d_in, d_out, rank: d_in + d_out,
                "This is the count at rank 1: each factor has r rows or columns.",
            ),
            Mistake(
                "a core in between",
                lambda d_in, d_out, rank: rank * (d_in + d_out) + rank * rank,
                "An r × r matrix is counted in between: LoRA has none (AdaLoRA has r values).",
            ),
        ),
    ),
    Part(
        "model_lora_parameters",
        _model,
        Case((_LLAMA_8B, ["q", "v"], 8)),
        3_407_872,
        _draw_model,
        (
            Mistake(
                "heads instead of KV heads",
                lambda config, targets, rank: _model(
                    config, targets, rank, shapes=_shapes(config, "heads")
                ),
                "k and v are counted with all query heads. Under grouped-query attention they have "
                "kv_heads · head_dim outputs.",
            ),
            Mistake(
                "one layer",
                lambda config, targets, rank: _model(config, targets, rank, layers=1),
                "This is one layer. Every layer has its own factors: times `layers`.",
            ),
            Mistake(
                "head_dim from the width",
                lambda config, targets, rank: _model(
                    config,
                    targets,
                    rank,
                    shapes=_shapes(config, head_dim=config["hidden"] // config["heads"]),
                ),
                "The head's width is taken as hidden / heads. Many models say it apart (head_dim), "
                "and then heads · head_dim isn't the hidden width.",
            ),
            Mistake(
                "all projections square",
                lambda config, targets, rank: (
                    2 * rank * config["hidden"] * len(targets) * config["layers"]
                ),
                "Every projection is counted as hidden × hidden. k and v are narrower, gate, up "
                "and down wider.",
            ),
            Mistake(
                "all targets",
                lambda config, targets, rank: _model(config, list(_shapes(config)), rank),
                "All projections are counted, not only those in `targets`.",
            ),
            Mistake(
                "unknown target ignored",
                lambda config, targets, rank: _model(
                    config, [name for name in targets if name in _shapes(config)], rank
                ),
                "A target that the layer doesn't have is passed over, so a misspelt name trains "
                "less than was asked for, silently. Raise a `ValueError` that names it.",
            ),
        ),
        (
            Case((_LLAMA_8B, ["q", "vv"], 8), "a target's name is misspelt"),
            Case((_LLAMA_8B, [], 8), "no target at all"),
        ),
    ),
)
