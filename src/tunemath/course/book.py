"""The ten exercises, in order, each read from its folder when asked for."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunemath.errors import CourseError

if TYPE_CHECKING:
    from tunemath.course.exercise import Part

__all__ = ["Exercise", "exercise", "exercises"]

_HERE = Path(__file__).parent
_FOLDER = re.compile(r"e(\d\d)_(\w+)$")


@dataclass(frozen=True)
class Exercise:
    """A question, what to start from, what helps, and where it leads; text is Markdown."""

    number: int
    name: str
    """As it is called on the command line, and its file."""
    title: str
    question: str
    second: str
    """The second part's question."""
    hints: tuple[str, ...]
    practice: str
    sources: str
    folder: Path

    @property
    def starter(self) -> str:
        """The code that a learner starts from."""
        return (self.folder / "starter.py").read_text(encoding="utf-8")

    @property
    def solution(self) -> str:
        """Code that is right; shown only to who asks."""
        return (self.folder / "solution.py").read_text(encoding="utf-8")

    @property
    def parts(self) -> Sequence[Part]:
        """The functions to write, with what they are held against."""
        return self._module("").PARTS

    def figure(self, answer: dict[str, Any]) -> Any:
        """Return a matplotlib figure drawn with the functions of an answer, by their names."""
        from matplotlib import rc_context

        from tunemath.course.style import STYLE

        with rc_context(STYLE):
            return self._module(".figure").figure(answer)

    def _module(self, name: str) -> Any:
        return importlib.import_module(f"tunemath.course.{self.folder.name}{name}")


@cache
def exercises() -> tuple[Exercise, ...]:
    """Return all exercises, in order."""
    folders = sorted(path for path in _HERE.iterdir() if _FOLDER.match(path.name))
    return tuple(map(_read, folders))


def exercise(which: str) -> Exercise:
    """Return an exercise by its number or its name; `CourseError` names the nearest otherwise."""
    for each in exercises():
        if which in (str(each.number), each.name):
            return each
    names = [each.name for each in exercises()]
    near = difflib.get_close_matches(which, names, 1)
    hint = f"; did you mean {near[0]}?" if near else f"; there are 1 to {len(names)}"
    raise CourseError(f"no exercise {which!r}{hint}")


def _read(folder: Path) -> Exercise:
    text = (folder / "page.md").read_text(encoding="utf-8")
    head, *rest = re.split(r"^## ", text, flags=re.MULTILINE)
    sections = {title.strip(): body.strip() for title, _, body in (s.partition("\n") for s in rest)}
    title, _, question = head.removeprefix("# ").partition("\n")
    match = _FOLDER.match(folder.name)
    assert match
    return Exercise(
        int(match[1]),
        match[2].replace("_", "-"),
        title.strip(),
        question.strip(),
        sections["The second part"],
        tuple(sections[f"Hint {k}"] for k in (1, 2, 3)),
        sections["In practice"],
        sections["Sources"],
        folder,
    )
