"""6. How many parameters a bottleneck adapter trains."""

from __future__ import annotations

import numpy as np

from tunemath.course.exercise import Case, Mistake, Part

__all__ = ["PARTS"]


def _adapter(width, bottleneck):
    return sum(bottleneck for _ in range(width)) + sum(width for _ in range(bottleneck))


def _model(layers, width, bottleneck, adapters, layer_norm):
    if adapters not in (1, 2):
        raise ValueError("one adapter a layer, or two")
    one = _adapter(width, bottleneck) + bottleneck + width
    norm = 2 * width if layer_norm else 0
    return layers * adapters * (one + norm)


def _draw(rng: np.random.Generator, size: int) -> Case:
    return Case((int(64 * rng.integers(2, 3 + 2 * size)), int(rng.integers(3, 8 * (size + 1)))))


def _draw_model(rng: np.random.Generator, size: int) -> Case:
    return Case(
        (
            int(rng.integers(2, 3 + 4 * size)),
            *_draw(rng, size).arguments,
            int(1 + size % 2),
            bool(size % 3),
        )
    )


def _other(bias, adapters=None, layers=None, norm=None):
    """Return the model's count with other biases, adapters or LayerNorms."""

    def count(n, width, bottleneck, each, layer_norm):
        if each not in (1, 2):
            raise ValueError
        one = _adapter(width, bottleneck) + bias(width, bottleneck)
        extra = (2 * width if norm is None else norm(width)) if layer_norm else 0
        return (layers or n) * (adapters or each) * (one + extra)

    return count


def _both(width, bottleneck):
    return width + bottleneck


PARTS = (
    Part(
        "adapter_parameters",
        _adapter,
        Case((1024, 32)),
        65_536,
        _draw,
        (
            Mistake(
                "one projection",
                lambda width, bottleneck: width * bottleneck,
                "This is one projection. There are two, down and up: the factor 2 is missing.",
            ),
            Mistake(
                "a full matrix",
                lambda width, bottleneck: width * width,
                "This is a square matrix of the model's width: the bottleneck is there to "
                "avoid it.",
            ),
            Mistake(
                "with biases",
                lambda width, bottleneck: 2 * width * bottleneck + width + bottleneck,
                "Biases are counted; this first question leaves them out.",
            ),
            Mistake(
                "sides added",
                lambda width, bottleneck: 2 * (width + bottleneck),
                "The sides are added; a projection has width × bottleneck entries.",
            ),
            Mistake(
                "a core in between",
                lambda width, bottleneck: 2 * width * bottleneck + bottleneck * bottleneck,
                "A bottleneck × bottleneck matrix is counted in between. There is only a "
                "non-linearity, which has no parameters.",
            ),
        ),
    ),
    Part(
        "model_adapter_parameters",
        _model,
        Case((24, 1024, 64, 2, False)),
        6_343_680,
        _draw_model,
        (
            Mistake(
                "without biases",
                _other(lambda width, bottleneck: 0),
                "The biases are missing: bottleneck of them in the down projection, width in the "
                "up projection.",
            ),
            Mistake(
                "biases of one width",
                _other(lambda width, bottleneck: 2 * width),
                "Both biases are counted with the model's width. The down projection's has as many "
                "entries as the bottleneck.",
            ),
            Mistake(
                "biases of the bottleneck",
                _other(lambda width, bottleneck: 2 * bottleneck),
                "Both biases are counted with the bottleneck. The up projection's has as many "
                "entries as the model is wide.",
            ),
            Mistake(
                "one adapter a layer",
                _other(_both, adapters=1),
                "One adapter a layer is counted. Houlsby's has two: after attention and after the "
                "feed-forward network.",
            ),
            Mistake(
                "one layer",
                _other(_both, layers=1),
                "This is one layer; every layer has its own adapters.",
            ),
            Mistake(
                "half a LayerNorm",
                _other(_both, norm=lambda width: width),
                "A LayerNorm has a gain and a bias, so 2 · width parameters.",
            ),
            Mistake(
                "any number of adapters",
                lambda layers, width, bottleneck, adapters, layer_norm: (
                    layers
                    * adapters
                    * (_adapter(width, bottleneck) + width + bottleneck + 2 * width * layer_norm)
                ),
                "Three adapters a layer are counted without a word. There are two places: raise a "
                "`ValueError` for any other number.",
            ),
        ),
        (Case((2, 64, 8, 3, False), "three adapters a layer"),),
    ),
)
