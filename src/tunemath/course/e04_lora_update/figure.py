"""An update of three directions, and what is left of one after rounding."""

from __future__ import annotations

from typing import Any

import numpy as np

from tunemath.course.style import ACCENT, BAD, LINE, MUTED, note, panels


def figure(answer: dict[str, Any]) -> Any:
    """Draw with `lora_update` and `merge`."""
    chart, left, right = panels(
        "ΔW = s · B A: twelve rows, three directions", "What survives merging", widths=(1, 1.35)
    )
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(3, 10)), rng.normal(size=(12, 3))
    delta = np.asarray(answer["lora_update"](a, b, 3.0))
    top = np.abs(delta).max()
    left.imshow(delta, cmap="PuOr", vmin=-top, vmax=top, aspect="auto")
    left.set(xlabel="d_in", ylabel="d_out", xticks=[], yticks=[])

    weight = rng.normal(0, 0.05, (128, 128)).astype(np.float16)
    a, b = rng.normal(size=(4, 128)), rng.normal(size=(128, 4))
    unit = np.linalg.norm(np.asarray(answer["lora_update"](a, b, 4.0)))
    sizes = np.geomspace(1e-6, 1e-1, 26)
    ratio = np.linalg.norm(weight.astype(float)) / unit
    shares, noises = [], []
    for size in sizes:
        update = np.asarray(answer["lora_update"](a, size * ratio * b, 4.0))
        merged, share = answer["merge"](weight, a, size * ratio * b, 4.0)
        moved = np.asarray(merged, float) - weight.astype(float)
        shares.append(100 * share)
        noises.append(100 * np.linalg.norm(moved - update) / np.linalg.norm(update))
    right.fill_between(sizes, 0, np.minimum(noises, 130), color=LINE, alpha=0.5, linewidth=0)
    right.plot(sizes, np.minimum(noises, 130), color=MUTED, linewidth=1.2)
    right.plot(sizes, shares, color=ACCENT)
    note(right, "survives on average", (sizes[-1], 100), ACCENT, xytext=(-4, 6), ha="right")
    note(right, "error of rounding, against the update", (sizes[0], 100), MUTED, xytext=(8, 6))
    right.axvspan(sizes[0], 2e-4, color=BAD, alpha=0.05, linewidth=0)
    right.set_xscale("log")
    right.set(
        xlabel="‖ΔW‖ / ‖W‖, weights in float16", ylabel="% of the update", ylim=(0, 130),
        xlim=(sizes[0], sizes[-1]),
    )  # fmt: skip
    return chart
