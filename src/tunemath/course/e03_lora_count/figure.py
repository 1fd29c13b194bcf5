"""Where LoRA's parameters are in an 8B model, and what a wrong head count makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tunemath.course.style import ACCENT, BAD, INK, MUTED, SECOND, note, panels

_CONFIG = {
    "hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "head_dim": 128, "ffn": 14336,
}  # fmt: skip
_NAMES = ["q", "k", "v", "o", "gate", "up", "down"]


def figure(answer: dict[str, Any]) -> Any:
    """Draw with `model_lora_parameters`."""
    count = answer["model_lora_parameters"]
    chart, left, right = panels("An 8B model at rank 16, in all 32 layers", "Against the rank")
    own = np.array([count(_CONFIG, [name], 16) for name in _NAMES]) / 1e6
    wrong = np.array([count({**_CONFIG, "kv_heads": 32}, [n], 16) for n in _NAMES]) / 1e6
    places = np.arange(len(_NAMES))
    left.bar(places[1:3], wrong[1:3], color="none", edgecolor=BAD, linestyle=(0, (3, 2)))
    left.bar(places, own, color=[SECOND if n in "kv" else ACCENT for n in _NAMES])
    for place, value in zip(places, own, strict=True):
        note(left, f"{value:.1f}", (place, value), INK, xytext=(0, 3), ha="center")
    note(left, "k and v with all 32 heads", (1.5, wrong[1]), BAD, xytext=(0, 20), ha="center")
    left.set_xticks(places, _NAMES)
    left.set_ylabel("millions of parameters")

    ranks = 2 ** np.arange(9)
    for targets, colour, label in (
        (_NAMES, ACCENT, "all seven projections"),
        (_NAMES[:4], SECOND, "attention"),
        (["q", "v"], MUTED, "q and v, as in the paper"),
    ):
        values = [count(_CONFIG, targets, int(rank)) / 8.03e9 for rank in ranks]
        right.plot(ranks, values, color=colour, marker="o", markersize=3, label=label)
    right.legend()
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xticks(ranks, [str(rank) for rank in ranks])
    right.set_yticks([1e-4, 1e-3, 1e-2, 1e-1], ["0.01 %", "0.1 %", "1 %", "10 %"])
    right.set(xlabel="rank", ylabel="share of the model that is trained")
    right.margins(y=0.12)
    return chart
