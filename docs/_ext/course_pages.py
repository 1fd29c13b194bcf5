"""The course for reading: each exercise with its figure, its hints folded, and its notebook."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Template
from matplotlib import rc_context

from tunemath.course.book import Exercise, exercises
from tunemath.course.notebook import build
from tunemath.course.style import STYLE

__all__ = ["exercise_page", "figure", "index_page", "notebook", "stem"]

_TEMPLATE = Path(__file__).resolve().parents[1] / "templates" / "course.md.j2"


def stem(each: Exercise) -> str:
    """Return the name of an exercise's files."""
    return f"{each.number:02d}-{each.name}"


def index_page() -> str:
    """Return the course's first page."""
    rows = [
        f"| {each.number} | [{each.title}]({stem(each)}.md) | "
        f"{', '.join(f'`{part.function}`' for part in each.parts)} |"
        for each in exercises()
    ]
    return Template(_TEMPLATE.read_text(encoding="utf-8")).render(
        mistakes=sum(len(part.mistakes) for each in exercises() for part in each.parts),
        rows="\n".join(rows),
        pages="\n".join(stem(each) for each in exercises()),
    )


def exercise_page(each: Exercise) -> str:
    """Return an exercise to be read; hints and solution open when they are asked for."""
    hints = "\n\n".join(
        _folded(f"Hint {number}", hint) for number, hint in enumerate(each.hints, 1)
    )
    return "\n\n".join(
        [
            f"# {each.number}. {each.title}",
            each.question,
            "## The second part",
            each.second,
            "## Where you start",
            f"```python\n{each.starter.strip()}\n```",
            f"`tunemath learn {each.name}` in the terminal grades it, "
            f"`tunemath learn --web` in the browser; or take the "
            f"{{download}}`notebook <{stem(each)}.ipynb>`.",
            hints,
            _folded("The solution", f"```python\n{each.solution.strip()}\n```"),
            "## The figure",
            f"![Drawn with the solution's functions]({stem(each)}.svg)",
            f"## In practice\n\n{each.practice}",
            f"## Sources\n\n{each.sources}\n",
        ]
    )


def notebook(each: Exercise) -> str:
    """Return an exercise's notebook."""
    return nbformat.writes(build(each)) + "\n"


def figure(each: Exercise) -> str:
    """Return an exercise's figure as SVG, drawn with the solution's functions."""
    names: dict[str, Any] = {}
    exec(compile(each.solution, str(each.folder / "solution.py"), "exec"), names)
    buffer = StringIO()
    with rc_context({**STYLE, "svg.hashsalt": "tunemath"}):
        each.figure(names).savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _folded(title: str, body: str) -> str:
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"
