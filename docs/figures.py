"""The figures of docs/objective, drawn by matplotlib and compared by what they plot.

An SVG holds its curves as numbers, in its description, beside the drawing. So a figure is current
when these agree to 1e-6, and the last digits of another machine, or another matplotlib's way of
writing a path, don't make it stale.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from curves import Drawn, Panel
from preference_curves import PREFERENCE
from token_curves import TOKENS

__all__ = ["NAMES", "alt", "drawing", "is_current", "svg"]

_FIGURES = {**PREFERENCE, **TOKENS}
NAMES = tuple(sorted(_FIGURES))

_ROLES = {
    "accent": "#1c5a9e", "second": "#8f5416", "bad": "#a3231c", "good": "#1b6a3c",
    "muted": "#5d5850", "ink": "#1d1b18", "line": "#b9b1a3",
}  # fmt: skip
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tunemath",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 11,
    "text.color": _ROLES["ink"],
    "axes.edgecolor": "#ddd7cc",
    "axes.labelcolor": _ROLES["muted"],
    "axes.labelsize": 10.5,
    "axes.titlesize": 11.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": "#ddd7cc",
    "ytick.color": "#ddd7cc",
    "xtick.labelcolor": _ROLES["muted"],
    "ytick.labelcolor": _ROLES["muted"],
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "lines.linewidth": 1.8,
    "figure.facecolor": "#fdfcfa",
    "axes.facecolor": "#fdfcfa",
    "savefig.facecolor": "#fdfcfa",
}
_WIDTH = 9.6
_DIGITS = 1e-6


@functools.cache
def _drawn(name: str) -> Drawn:
    return _FIGURES[name]()


@functools.cache
def _drawn_by() -> str:
    """Return a fingerprint of the code that draws."""
    text = Path(__file__).read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def alt(name: str) -> str:
    """Return what a figure shows, in words."""
    return _drawn(name).alt


def _record(name: str) -> dict[str, Any]:
    """Return all that a figure shows, as JSON can hold it."""
    drawn = _drawn(name)
    panels = [
        {
            "title": panel.title,
            "xlabel": panel.xlabel,
            "x": [panel.x[0], panel.x[-1], len(panel.x)],
            "ylim": panel.ylim,
            "series": [
                [s.label, s.role, s.dashed, s.at, [float(f"{y:.7g}") for y in s.y]]
                for s in panel.series
            ],
        }
        for panel in drawn.panels
    ]
    shape = {"title": drawn.title, "alt": drawn.alt, "columns": drawn.columns}
    return json.loads(json.dumps({"drawn_by": _drawn_by(), **shape, "panels": panels}))


@functools.cache
def svg(name: str) -> str:
    """Return a figure as an SVG document that holds its curves."""
    from matplotlib import style

    buffer = StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    held = json.dumps(_record(name), ensure_ascii=False, separators=(",", ":"))
    with style.context(["default", _STYLE]):
        metadata: Any = {**nothing, "Title": _drawn(name).title, "Description": held}
        drawing(name).savefig(buffer, format="svg", metadata=metadata)
    text = re.sub(r' d="[^"]*"', lambda path: _short(path[0]), buffer.getvalue())
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def _short(path: str) -> str:
    """Return a path on one line, to a hundredth of a point."""
    return re.sub(r"(\.\d\d)\d+", r"\1", re.sub(r"\s+", " ", path))


def drawing(name: str) -> Any:
    """Return a figure as matplotlib's own."""
    from matplotlib import style
    from matplotlib.figure import Figure

    drawn = _drawn(name)
    rows = math.ceil(len(drawn.panels) / drawn.columns)
    with style.context(["default", _STYLE]):
        height = {2: 3.6, 3: 2.75, 4: 2.55}[drawn.columns]
        figure = Figure(figsize=(_WIDTH, height * rows), layout="constrained")
        grid = figure.subplots(rows, drawn.columns, squeeze=False).ravel()
        for axes in grid[len(drawn.panels) :]:
            axes.set_axis_off()
        for axes, panel in zip(grid, drawn.panels, strict=False):
            _paint(axes, panel)
    return figure


def _paint(axes: Any, panel: Panel) -> None:
    axes.set_title(panel.title, loc="left", color=_ROLES["ink"], pad=6)
    axes.set_xlabel(panel.xlabel)
    axes.set_xlim(panel.x[0], panel.x[-1])
    if panel.ylim is not None:
        axes.set_ylim(*panel.ylim)
        if panel.ylim[0] < 0:
            axes.axhline(0, color="#ddd7cc", linewidth=0.8)
    if panel.x[0] < 0 < panel.x[-1]:
        axes.axvline(0, color="#ddd7cc", linewidth=0.8)
    for series in panel.series:
        axes.plot(
            panel.x, series.y, color=_ROLES[series.role],
            linestyle=(0, (4, 2)) if series.dashed else "-",
            linewidth=2.6 if series.role == "line" else None,
        )  # fmt: skip
        if series.at is not None:
            x, y, side = series.at
            axes.text(x, y, series.label, color=_ROLES[series.role], ha=side, va="center")


def is_current(name: str, text: str) -> bool:
    """Return whether an SVG document shows what the code gives."""
    try:
        described = ElementTree.fromstring(text).iter(
            "{http://purl.org/dc/elements/1.1/}description"
        )
        held = json.loads(next(described).text or "")
    except (ElementTree.ParseError, StopIteration, ValueError):
        return False
    return _same(held, _record(name))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=_DIGITS, abs_tol=_DIGITS)
    return type(a) is type(b) and a == b
