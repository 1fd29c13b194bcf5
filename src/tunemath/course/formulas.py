"""Formulas for where they can't be typeset.

A page has each displayed formula twice: in LaTeX, and in a comment below it in plain characters.
Within a line there is only simple LaTeX, which is put into characters here.
"""

from __future__ import annotations

import re

__all__ = ["readable"]

_DISPLAY = re.compile(r"\$\$.+?\$\$\n<!-- (.+?) -->", re.DOTALL)
_INLINE = re.compile(r"\$([^$]+)\$")
_COMMANDS = {
    r"\Delta": "Δ", r"\alpha": "α", r"\beta": "β", r"\pi": "π", r"\rho": "ρ", r"\sigma": "σ",
    r"\ell": "ℓ", r"\sum": "Σ", r"\log": "log", r"\ln": "ln", r"\times": "×", r"\cdot": "·",
    r"\top": "ᵀ", r"\,": " ", "'": "′", "-": "−",
}  # fmt: skip
_SMALL = {
    "_": dict(zip("ijkprt", "ᵢⱼₖₚᵣₜ", strict=True)),
    "^": {"2": "²", "0": "⁰", "ᵀ": "ᵀ"},
}


def readable(markdown: str) -> str:
    r"""Return Markdown whose formulas are code: ``$\sigma_k$`` becomes ``σₖ``."""
    text = _DISPLAY.sub(lambda match: f"\n    {match[1]}\n", markdown)
    return _INLINE.sub(lambda match: f"`{_plain(match[1])}`", text)


def _plain(latex: str) -> str:
    text = re.sub(r"\\mathrm\{(\w+)\}", r"\1", latex)
    text = re.sub(r"\\[A-Za-z]+|\\,|['-]", lambda m: _COMMANDS.get(m[0], m[0]), text)
    text = re.sub(r"([_^])(\{[^{}]*\}|.)", _placed, text)
    return re.sub(r"\s+", " ", text.replace("{", "").replace("}", "")).strip()


def _placed(match: re.Match[str]) -> str:
    """Return a sub- or superscript in small characters where there are such."""
    mark, inside = match[1], match[2].strip("{}")
    small = _SMALL[mark]
    if inside in small:
        return small[inside]
    return f"{mark}({inside})" if mark == "^" or " " in inside else f"_{inside}"
