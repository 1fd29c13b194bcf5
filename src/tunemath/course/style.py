"""How the course's figures look."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = [
    "ACCENT", "BAD", "GOOD", "INK", "LINE", "MUTED", "PAPER", "SECOND", "STYLE", "note", "panels",
]  # fmt: skip

ACCENT, SECOND, BAD, GOOD = "#1c5a9e", "#b06a1c", "#a3231c", "#1b6a3c"
INK, MUTED, LINE, PAPER = "#1d1b18", "#5d5850", "#d9d2c5", "#fdfcfa"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "tunemath",
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.9,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}


def panels(*titles: str, height: float = 3.6, widths: tuple[float, ...] | None = None) -> Any:
    """Return a figure and its panels side by side, each with a title."""
    figure = Figure(figsize=(9.6, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)  # type: ignore[union-attr]
    axes = figure.subplots(1, len(titles), width_ratios=widths, squeeze=False)[0]
    for each, title in zip(axes, titles, strict=True):
        each.set_title(title)
    return figure, *axes


def note(axes: Axes, text: str, at: tuple[Any, Any], colour: str = INK, **options: Any) -> None:
    """Write beside a point, in the data's coordinates."""
    place = {"xytext": (6, 6), "textcoords": "offset points", "fontsize": 9, **options}
    axes.annotate(text, at, color=colour, **place)
