"""What is printed: cleaned in one place, whatever wrote it."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

import typer

from tunemath.cli.streams import is_unicode
from tunemath.shown import clean

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

__all__ = ["print_json", "say", "show"]

# What JSON may hold as it is and a terminal obeys, or no encoding has.
_ESCAPED = re.compile("[\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


def say(text: str, end: str = "\n", *, err: bool = False) -> None:
    """Print text, cleaned, to standard output or standard error."""
    typer.echo(clean(text) + end, nl=False, err=err)


def show(view: RenderableType, *, title: str = "") -> None:
    """Print a view of the report, below a title in plain text."""
    from rich.console import Console

    console = Console()
    if title:
        console.print(_Cleaned(title), highlight=False, markup=False)
    console.print(_Cleaned(view))


def print_json(value: Any) -> None:
    """Print a JSON value to standard output; what a terminal would obey is escaped.

    So is all that is not ASCII where the output has no other signs.
    """
    text = json.dumps(value, indent=1, ensure_ascii=not is_unicode(sys.stdout))
    sys.stdout.write(_ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


class _Cleaned:
    """A view whose text can't act on a terminal; the colours are its own."""

    def __init__(self, view: RenderableType) -> None:
        self.view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        for segment in console.render(self.view, options):
            yield segment if segment.control else Segment(clean(segment.text), segment.style)
