"""The Jinja sandbox that chat templates are written for.

The settings, filters and globals are those that templates on the hub rely on: blocks trimmed,
``break`` and ``continue``, ``{% generation %}``, ``tojson``, ``raise_exception``, ``strftime_now``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import Namespace

from tunemath.mask.effort import LimitedSandbox

__all__ = ["sandbox"]

_LONGEST_STYLE = 1000


def sandbox(clock: Callable[[], datetime]) -> LimitedSandbox:
    """Return an environment that compiles chat templates; ``clock`` answers ``strftime_now``."""
    environment = LimitedSandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda style: clock().strftime(style[:_LONGEST_STYLE])
    environment.globals["dict"] = _MakeDict()
    environment.globals["namespace"] = _PublicNamespace
    return environment


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks a span; only its body is written."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _MakeDict:
    """``dict`` without the class's other attributes."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _PublicNamespace(Namespace):
    """A namespace in which no attribute begins with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:
        for name in dict(*args[1:], **values):
            _refuse_private(name)
        Namespace.__init__(*args, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a chat template may not set the attribute {name!r}")


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
