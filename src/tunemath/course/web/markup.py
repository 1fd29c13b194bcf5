"""The course's Markdown as HTML, its formulas as MathML, its code in colour."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

__all__ = ["code", "html", "line"]

# A displayed formula has a comment after it, in which it stands in plain characters.
_FORMULA = re.compile(r"\$\$(?P<block>.+?)\$\$(?:\n<!-- .+? -->)?|\$(?P<inline>[^$]+)\$", re.DOTALL)
_LANGUAGES = ("python", "console")


def html(markdown: str) -> str:
    """Return a text as HTML; HTML inside it is escaped."""
    return _renderer().render(markdown)


def line(markdown: str) -> str:
    """Return a message as HTML without a paragraph around it."""
    return _renderer().renderInline(markdown)


def code(source: str, language: str = "python") -> str:
    """Return code as HTML whose classes name what each word is."""
    return highlight(source, get_lexer_by_name(language), HtmlFormatter(nowrap=True))


@cache
def _renderer() -> MarkdownIt:
    options = {"html": False, "highlight": _highlighted}
    renderer = MarkdownIt("commonmark", options).enable("table")
    renderer.inline.ruler.before("escape", "formula", _formula)
    renderer.add_render_rule("formula", _mathml)
    return renderer


def _highlighted(source: str, language: str, _: str) -> str:
    return code(source, language) if language in _LANGUAGES else ""


def _formula(state: StateInline, silent: bool) -> bool:
    found = _FORMULA.match(state.src, state.pos)
    if not found:
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.content = found["block"] or found["inline"]
        token.block = bool(found["block"])
    state.pos = found.end()
    return True


def _mathml(_: Any, tokens: Sequence[Token], place: int, *rest: Any) -> str:
    token = tokens[place]
    return convert(token.content.strip(), display="block" if token.block else "inline")
