"""A picture at rank 1, 2, 4, …, and three kinds of spectra."""

from __future__ import annotations

from typing import Any

import numpy as np

from tunemath.course.style import ACCENT, GOOD, LINE, MUTED, SECOND, note, panels


def figure(answer: dict[str, Any]) -> Any:
    """Draw with `low_rank` and `rank_for_error`."""
    chart, *tiles, curve = panels(
        *("",) * 4, "Error left, by rank", height=3.0, widths=(1, 1, 1, 1, 2.1)
    )
    picture = _picture(72)
    for axes, rank in zip(tiles, (1, 4, 12, 72), strict=True):
        near, error = answer["low_rank"](picture, rank)
        axes.imshow(near, cmap="cividis", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"rank {rank}\n{100 * error:.0f} % off" if rank < 72 else "the matrix\n")
        for spine in axes.spines.values():
            spine.set_visible(False)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(72, 72))
    planted = rng.normal(size=(72, 6)) @ rng.normal(size=(6, 72)) + 0.3 * noise
    ranks = np.arange(1, 49)
    for matrix, colour, label, at in (
        (noise, MUTED, "noise", 20),
        (picture, ACCENT, "the picture", 2),
        (planted, SECOND, "rank 6, and a little noise", 2),
    ):
        errors = [100 * answer["low_rank"](matrix, int(rank))[1] for rank in ranks]
        curve.plot(ranks, errors, color=colour)
        note(curve, label, (at, errors[at - 1]), colour, xytext=(8, 4))
    need = answer["rank_for_error"](picture, 0.1)
    curve.axhline(10, color=LINE, linewidth=1)
    curve.plot(need, 10, "o", color=GOOD, markersize=5)
    note(curve, f"10 % off needs rank {need}", (need, 10), GOOD, xytext=(10, 12))
    curve.set(xlabel="rank", ylabel="relative error, %", ylim=(0, 102))
    return chart


def _picture(size: int) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    rings = 0.5 + 0.5 * np.cos(9 * np.hypot(x + 0.25, y + 0.15))
    leaf = (np.hypot(x - 0.35, y - 0.3) < 0.42) * (0.9 - 0.5 * (y + 1) / 2)
    return np.clip(np.where(leaf > 0, leaf, 0.75 * rings * np.exp(-0.6 * np.hypot(x, y))), 0, 1)
