"""The course in Jupyter: notebooks made from the exercises, and what their cells call."""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from tunemath.course.book import Exercise, exercise, exercises
from tunemath.course.grading import Grade, PartGrade, grade_part
from tunemath.errors import CourseError
from tunemath.storage import write_text

__all__ = ["build", "check", "draw", "hint", "write_notebooks"]


@dataclass(frozen=True)
class _Shown:
    """What a cell shows: HTML in a notebook, text elsewhere."""

    text: str
    markup: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.markup


def check(which: str, *functions: Callable[..., Any]) -> _Shown:
    """Grade functions as an exercise's answer: ``check("kl-movement", kl, movement)``."""
    names = {function.__name__: function for function in functions}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        grade = Grade(tuple(grade_part(part, names) for part in exercise(which).parts))
    return _Shown("\n\n".join(map(_text, grade.parts)), "".join(map(_markup, grade.parts)))


def hint(which: str, number: int) -> _Shown:
    """Return an exercise's hint 1, 2 or 3."""
    hints = exercise(which).hints
    if number not in range(1, len(hints) + 1):
        raise CourseError(f"no hint {number}; there are 1 to {len(hints)}")
    text = hints[number - 1]
    return _Shown(text, f"<p>{html.escape(text)}</p>")


def draw(which: str, *functions: Callable[..., Any]) -> _Shown:
    """Return an exercise's figure, drawn with these functions."""
    figure = exercise(which).figure({function.__name__: function for function in functions})
    buffer = StringIO()
    figure.savefig(buffer, format="svg")
    svg = buffer.getvalue()
    return _Shown(f"the figure of {which}", svg[svg.index("<svg") :])


def build(each: Exercise, source: str | None = None) -> Any:
    """Return an exercise as a notebook (nbformat), with code in place of the starter's if given."""
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    functions = ", ".join(part.function for part in each.parts)
    cells = [
        new_markdown_cell(f"# {each.number}. {each.title}\n\n{each.question}"),
        new_markdown_cell(f"## The second part\n\n{each.second}"),
        new_code_cell((each.starter if source is None else source).strip()),
        new_markdown_cell("Run this to be graded, as often as you like:"),
        new_code_cell(
            "from tunemath.course.notebook import check, draw, hint\n\n"
            f'check("{each.name}", {functions})'
        ),
        new_markdown_cell("Stuck? There are three hints, each stronger than the one before:"),
        new_code_cell(f'# hint("{each.name}", 1)'),
        new_markdown_cell("When it is right, a figure drawn with your functions:"),
        new_code_cell(
            f'# draw("{each.name}", {functions})'
            if source is None
            else f'draw("{each.name}", {functions})'
        ),
        new_markdown_cell(f"## In practice\n\n{each.practice}\n\n## Sources\n\n{each.sources}"),
    ]
    for place, cell in enumerate(cells):
        cell["id"] = f"{each.name}-{place}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def write_notebooks(folder: Path) -> list[Path]:
    """Write all ten; a notebook that is there already is somebody's work and is kept."""
    import nbformat

    written = []
    for each in exercises():
        path = folder / f"{each.number:02d}-{each.name}.ipynb"
        if not path.exists():
            write_text(path, nbformat.writes(build(each)) + "\n")
            written.append(path)
    return written


def _text(part: PartGrade) -> str:
    if part.passed:
        return f"✓ {part.function}: right in all of {part.cases} cases"
    lines = [f"✗ {part.function}: right in {part.right} of {part.cases} cases"]
    if part.call:
        lines += [f"call      {part.call}", f"expected  {part.expected}", f"given     {part.given}"]
    if part.why:
        lines.append(f"where     {part.why}")
    return "\n".join([*lines, _message(part)])


def _message(part: PartGrade) -> str:
    return f"{part.mistake.capitalize()}: {part.message}" if part.mistake else part.message


def _markup(part: PartGrade) -> str:
    """Return a grade as HTML; what the learner's code made is escaped."""
    head, *rest = _text(part).splitlines()
    colour = "#1b6a3c" if part.passed else "#a3231c"
    body = html.escape("\n".join(rest[:-1]))
    said = f"<p>{html.escape(rest[-1])}</p>" if rest else ""
    table = f"<pre>{body}</pre>" if body else ""
    return f'<div><strong style="color:{colour}">{html.escape(head)}</strong>{table}{said}</div>'
