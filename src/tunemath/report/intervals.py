"""Rows of points with intervals: the forest plot of differences, and the scores by arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunemath.report.svg import ACCENT, BAD, INK, LINE, MUTED, SECOND
from tunemath.report.text import (
    clean,
    dig,
    number,
    percent,
    percent_interval,
    points,
    points_interval,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["difference_drawing", "score_drawing"]

Drawn = tuple[str, "Callable[[Drawing], None]", float]

_ROW = 0.42
_SETS = {"task": ACCENT, "retention": SECOND}


@dataclass(frozen=True)
class _Row:
    """A point with an interval, in percent, under a line of words."""

    set: str
    label: str
    words: str
    value: float
    low: float | None
    high: float | None


def difference_drawing(scorecard: Mapping[str, Any] | None) -> Drawn | None:
    """Return words, a painter and a height in inches for the paired differences."""
    rows = []
    for name in _SETS:
        for pair, d in (dig(scorecard, "differences", name) or {}).items():
            if number(d.get("difference")) is None:
                continue
            ends = points_interval(d.get("low"), d.get("high"))
            words = f"{points(d['difference'])} {ends}"
            rows.append(_row(name, clean(pair).replace(" - ", " − "), words, d["difference"], d))
    if not rows:
        return None
    margin = number(dig(scorecard, "retention_margin"))

    def paint(drawing: Drawing) -> None:
        axes = drawing.subplots()
        _interval_rows(axes, rows)
        for i, row in enumerate(rows):
            axes.plot([0, 0], [i - 0.22, i + 0.26], color=MUTED, linewidth=1, zorder=0)
            if margin is not None and row.set == "retention":
                ends = [i - 0.22, i + 0.26]
                axes.plot(
                    [-100 * margin] * 2, ends, color=BAD, linewidth=1.5, linestyle=(0, (2, 1.5))
                )
        axes.set_xlabel("Percentage points")

    return _words(rows), paint, 0.62 + _ROW * len(rows)


def score_drawing(scorecard: Mapping[str, Any] | None) -> Drawn | None:
    """Return words, a painter and a height in inches for the scores by arm."""
    rows = []
    for name in _SETS:
        for arm in ("base", "prompted", "tuned"):
            score = dig(scorecard, "arms", arm, name) or {}
            if number(score.get("score")) is None:
                continue
            ends = percent_interval(score.get("low"), score.get("high"))
            rows.append(_row(name, arm, f"{percent(score['score'])} {ends}", score["score"], score))
    if not rows:
        return None

    def paint(drawing: Drawing) -> None:
        axes = drawing.subplots()
        _interval_rows(axes, rows)
        axes.set_xlim(-1, 101)
        axes.set_xlabel("Score, %")

    return _words(rows), paint, 0.62 + _ROW * len(rows)


def _row(name: str, label: str, words: str, value: float, ends: Mapping[str, Any]) -> _Row:
    low, high = number(ends.get("low")), number(ends.get("high"))
    scaled = [None if x is None else 100 * x for x in (low, high)]
    return _Row(name, label, words, 100 * value, *scaled)


def _words(rows: Sequence[_Row]) -> str:
    return "; ".join(f"{row.set}, {row.label}: {row.words}" for row in rows) + "."


def _interval_rows(axes: Axes, rows: Sequence[_Row]) -> None:
    """Draw each row as a line of words with its point and interval below."""
    across = axes.get_yaxis_transform()
    for i, row in enumerate(rows):
        colour = _SETS[row.set]
        marker = "o" if row.set == "task" else "s"
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [i, i], color=colour, linewidth=2)
        axes.plot(row.value, i, color=colour, marker=marker, markersize=6)
        place = {"transform": across, "va": "center", "fontsize": 9}
        axes.text(0, i - 0.44, f"{row.set.capitalize()}, {row.label}", color=INK, **place)
        axes.text(1, i - 0.44, row.words, color=MUTED, ha="right", **place)
    axes.set_ylim(len(rows) - 0.5, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="x", color=LINE)
