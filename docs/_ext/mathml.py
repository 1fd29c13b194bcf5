"""Formulas as MathML, which browsers draw by themselves: no script and no request."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

__all__ = ["setup"]

# Names of functions, which the converter leaves as identifiers, without room before an argument.
_FUNCTION = re.compile(r"<mi>([a-zA-Z]{2,})</mi>")
_SPACED = r'<mo form="prefix" lspace="0.17em" rspace="0.17em" movablelimits="false">\1</mo>'


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer; conf.py chooses it as ``html_math_renderer``."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{_mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def _mathml(formula: str, display: str) -> str:
    return _FUNCTION.sub(_SPACED, convert(formula, display=display))
