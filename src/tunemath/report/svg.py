"""A matplotlib drawing as an inline SVG that takes its colours and fonts from the page.

Drawings name colours by role. Each role is drawn in a stand-in hexadecimal colour, which is
then replaced by a CSS variable, so one drawing serves light, dark and print.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["ACCENT", "BAD", "INK", "LINE", "MUTED", "SECOND", "inline_svg", "standalone_svg"]

INK, MUTED, LINE = "#0b0001", "#0b0002", "#0b0003"
ACCENT, SECOND, BAD = "#0b0004", "#0b0005", "#0b0006"
_ROLES = {
    INK: "var(--ink, currentColor)",
    MUTED: "var(--muted, currentColor)",
    LINE: "var(--line, currentColor)",
    ACCENT: "var(--accent, currentColor)",
    SECOND: "var(--second, currentColor)",
    BAD: "var(--bad, currentColor)",
}
# The page's colours by day, and the paper, for a drawing that stands in a file of its own.
_LIGHT = {
    "ink": "#1d1b18", "muted": "#5d5850", "line": "#b9b1a3",
    "accent": "#1c5a9e", "second": "#8f5416", "bad": "#a3231c",
}  # fmt: skip
_PAPER = "#fdfcfa"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tunemath",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def inline_svg(
    name: str,
    title: str,
    alt: str,
    paint: Callable[[Drawing], None],
    size: tuple[float, float] = (4.7, 3.0),
) -> str:
    """Return what ``paint`` draws, as an ``<svg>`` element with a title and a description.

    Args:
        name: a word that prefixes every id, so that drawings can share a page.
        title: what the drawing shows.
        alt: the same in words and numbers, for those who do not see it.
        paint: draws on an empty matplotlib figure.
        size: width and height in inches; 4.7 in fits a phone at its natural size.
    """
    from matplotlib import style
    from matplotlib.figure import Figure as Drawing

    buffer = StringIO()
    with style.context(["default", _STYLE]):
        drawing = Drawing(figsize=size, layout="constrained")
        paint(drawing)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawing.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue(), name, title, alt)


def standalone_svg(inline: str) -> str:
    """Return an inline drawing as an SVG file of its own, in the colours of the page by day."""
    text = re.sub(r"var\(--(\w+), currentColor\)", lambda match: _LIGHT[match[1]], inline)
    head, _, body = text.partition(">")
    view = re.search(r'viewBox="([^"]+)"', head)
    x, y, width, height = (view[1] if view else "0 0 338 216").split()
    return (
        f'{head} xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="system-ui, Helvetica, Arial, sans-serif">'
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{_PAPER}"/>{body}\n'
    )


def _inline(text: str, name: str, title: str, alt: str) -> str:
    """Return a whole SVG document as an element that can stand in a page."""
    for pattern in (r"<!--.*?-->", r"<metadata>.*?</metadata>", r"<style.*?</style>"):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', text)
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r' d="[^"]*"', lambda m: _two_digits(re.sub(r"\s+", " ", m[0])), body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r"font: ([^;\"]*)", _font, body)
    for stand_in, variable in _ROLES.items():
        body = body.replace(stand_in, variable)
    body = re.sub(r"<defs>\s*</defs>|\n\s*", "", body).replace("xlink:href", "href")
    return (
        f'<svg viewBox="{view[1] if view else "0 0 338 216"}" role="img" '
        f'aria-labelledby="{name}-title {name}-alt">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-alt">{escape(alt)}</desc>{body}</svg>'
    )


def _two_digits(path: str) -> str:
    return re.sub(r"(\.\d\d)\d+", r"\1", path)


def _font(match: re.Match[str]) -> str:
    """Keep the size and weight of a ``font`` shorthand and leave the family to the page."""
    words = match[1].split("'")[0].split()
    size = next((word for word in words if word.endswith("px")), "9px")
    weight = next((word for word in words if word.isdigit() or word == "bold"), None)
    return f"font-size: {size}" + (f"; font-weight: {weight}" if weight else "")
