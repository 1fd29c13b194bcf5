"""Adapters against LoRA on one model."""

from __future__ import annotations

from typing import Any

import numpy as np

from tunemath.course.style import ACCENT, INK, LINE, MUTED, SECOND, note, panels

_LAYERS, _WIDTH = 24, 1024


def figure(answer: dict[str, Any]) -> Any:
    """Draw with `adapter_parameters` and `model_adapter_parameters`."""
    count = answer["model_adapter_parameters"]
    chart, left, right = panels("Down, a bend, and up", "24 layers of width 1024", widths=(1, 1.25))
    _sketch(left, 64, answer["adapter_parameters"](_WIDTH, 64))
    sizes = 2 ** np.arange(2, 11)
    for adapters, colour, label in (
        (2, ACCENT, "two adapters a layer"),
        (1, SECOND, "one adapter a layer"),
    ):
        values = [count(_LAYERS, _WIDTH, int(size), adapters, False) / 1e6 for size in sizes]
        right.plot(sizes, values, color=colour, marker="o", markersize=3, label=label)
    lora = [_LAYERS * 4 * size * 2 * _WIDTH / 1e6 for size in sizes]
    label = "LoRA of that rank on q, k, v, o"
    right.plot(sizes, lora, color=MUTED, linestyle=(0, (4, 3)), linewidth=1.3, label=label)
    right.legend(loc="lower right")
    right.axhline(_LAYERS * 12 * _WIDTH**2 / 1e6, color=LINE)
    note(right, "the model's layers", (sizes[0], _LAYERS * 12 * _WIDTH**2 / 1e6), MUTED,
         xytext=(0, -13))  # fmt: skip
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xticks(sizes, [str(size) for size in sizes])
    right.set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    right.set(xlabel="bottleneck, or rank", ylabel="millions of parameters")
    return chart


def _sketch(axes: Any, bottleneck: int, parameters: int) -> None:
    """Draw the adapter as two trapezia whose narrow sides meet."""
    narrow = 0.16
    down = [(-1, 0), (1, 0), (narrow, 1), (-narrow, 1)]
    up = [(-narrow, 1.25), (narrow, 1.25), (1, 2.25), (-1, 2.25)]
    for corners, text in ((down, "W_down"), (up, "W_up")):
        x, y = zip(*corners, strict=True)
        axes.fill(x, y, color=ACCENT, alpha=0.16, linewidth=0)
        axes.text(0, sum(y) / 4, text, ha="center", va="center", color=ACCENT)
    axes.text(0, 1.125, "σ", ha="center", va="center", color=INK)
    axes.text(0, -0.18, f"h, {_WIDTH} wide", ha="center", color=MUTED, fontsize=9)
    axes.text(0.3, 1.1, f"{bottleneck} wide", color=MUTED, fontsize=9, va="center")
    axes.text(0, 2.36, f"{parameters:,} parameters", ha="center", color=INK, fontsize=9)
    axes.set(xlim=(-1.5, 1.5), ylim=(-0.35, 2.6), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
