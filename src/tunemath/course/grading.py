"""Grade what a learner wrote: run it on every case, find the first that fails and the mistake."""

from __future__ import annotations

import copy
import inspect
import math
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from numbers import Number
from typing import Any

import numpy as np

from tunemath.course.exercise import Case, Mistake, Part, Raises

__all__ = ["FILE", "Grade", "PartGrade", "cases_of", "grade", "grade_part", "run", "same", "shown"]

FILE = "answer.py"
"""What a learner's code is called in a traceback."""
_RANDOM = 16
_SHOWN = 8
_PRINTED = 2000


@dataclass(frozen=True)
class PartGrade:
    """How one function did."""

    function: str
    passed: bool
    cases: int
    """How many it was held against."""
    right: int
    call: str = ""
    """The smallest call that went wrong, as Python."""
    expected: str = ""
    given: str = ""
    why: str = ""
    """What is special about this case."""
    mistake: str = ""
    """The known mistake's name; empty where none was recognised."""
    message: str = ""
    """What to say about it."""


@dataclass(frozen=True)
class Grade:
    """How an answer did."""

    parts: tuple[PartGrade, ...]
    printed: str = ""
    """What the code printed."""
    error: str = ""
    """Why nothing could be called: the code does not run."""

    @property
    def passed(self) -> bool:
        """Whether all of it is right."""
        return not self.error and all(part.passed for part in self.parts)


@dataclass(frozen=True)
class _Raised:
    """An exception that a call ended in."""

    error: Exception
    line: int | None

    def __str__(self) -> str:
        place = f" in line {self.line}" if self.line else ""
        return f"{type(self.error).__name__}{place}: {self.error}"


def grade(source: str, parts: Sequence[Part], seed: int = 0) -> Grade:
    """Run the code, then each part's function on its cases; the code runs in this process."""
    printed = StringIO()
    with redirect_stdout(printed), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        names, error = run(source)
        found = () if error else tuple(grade_part(part, names, seed) for part in parts)
    return Grade(found, _cut(printed), error)


def run(source: str) -> tuple[dict[str, Any], str]:
    """Return the names that the code defines, and why it does not run; empty if it does."""
    names: dict[str, Any] = {"__name__": "answer"}
    try:
        exec(compile(source, FILE, "exec"), names)
    except Exception as error:
        return names, _not_run(error)
    return names, ""


def cases_of(part: Part, seed: int = 0) -> Iterator[Case]:
    """Yield the published case, the edge cases, then random ones, the smallest first."""
    yield part.published
    yield from part.edges
    rng = np.random.default_rng(seed)
    yield from (part.draw(rng, 1 + size // 2) for size in range(_RANDOM))


def grade_part(part: Part, names: Mapping[str, Any], seed: int = 0) -> PartGrade:
    """Hold one function, found by its name, against the part's cases."""
    function = names.get(part.function)
    cases = list(cases_of(part, seed))
    unable = _unable(part, function, cases[0])
    if unable or function is None:
        return PartGrade(part.function, False, len(cases), 0, message=unable)
    expected = [_expected(part, case) for case in cases]
    given = [_call(function, case) for case in cases]
    right = [same(e, g, part.tolerance) for e, g in zip(expected, given, strict=True)]
    for place, case in enumerate(cases):
        if _changed(function, case):
            right[place] = False
    if all(right):
        return PartGrade(part.function, True, len(cases), len(cases))
    first = right.index(False)
    mistake = _recognised(part, cases, given, right)
    message = mistake.message if mistake else _unrecognised(expected[first], given[first])
    if mistake is None and same(expected[first], given[first], part.tolerance):
        message = "The result is right, but the function changed its arguments: work on a copy."
    return PartGrade(
        part.function,
        False,
        len(cases),
        sum(right),
        _shown_call(part.function, cases[first]),
        shown(expected[first]),
        shown(given[first]),
        cases[first].why,
        mistake.name if mistake else "",
        message,
    )


def _unable(part: Part, function: Any, case: Case) -> str:
    """Return why a function can't be called at all; empty where it can."""
    if function is None:
        return f"There is no function `{part.function}` in the answer; keep the starter's name."
    if not callable(function):
        return f"`{part.function}` is a {type(function).__name__}; expected a function."
    try:
        inspect.signature(function).bind(*case.arguments)
    except (TypeError, ValueError):
        return (
            f"`{part.function}{inspect.signature(function)}` does not take "
            f"{len(case.arguments)} arguments; keep the starter's signature."
        )
    return ""


def _expected(part: Part, case: Case) -> Any:
    try:
        return part.oracle(*copy.deepcopy(case.arguments))
    except ValueError:
        return Raises()


def _call(function: Callable[..., Any], case: Case) -> Any:
    try:
        return function(*copy.deepcopy(case.arguments))
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == FILE]
        return _Raised(error, frames[-1].lineno if frames else None)


def _changed(function: Callable[..., Any], case: Case) -> bool:
    arguments = copy.deepcopy(case.arguments)
    try:
        function(*arguments)
    except Exception:
        return False
    return not same(list(case.arguments), list(arguments), 0.0)


def _recognised(
    part: Part, cases: Sequence[Case], given: Sequence[Any], right: Sequence[bool]
) -> Mistake | None:
    """Return the known mistake whose answers are the learner's.

    It must give the learner's answer on every failed case that is no edge case, and on one case at
    least. Of several, the one that goes wrong least where the learner is right, then the one that
    explains most: an answer can be wrong in more than one way.
    """
    best, least = None, (math.inf, 0)
    plain = {p for p, ok in enumerate(right) if not ok and not cases[p].why}
    for mistake in part.mistakes:
        theirs = [_call(mistake.answer, case) for case in cases]
        alike = {p for p, t in enumerate(theirs) if same(t, given[p], part.tolerance)}
        told = {p for p in alike if not right[p]}
        amiss = sum(right[p] and p not in alike for p in range(len(cases)))
        if told and told >= plain and (plain or not amiss) and (amiss, -len(told)) < least:
            best, least = mistake, (amiss, -len(told))
    return best


def _unrecognised(expected: Any, given: Any) -> str:
    if isinstance(given, _Raised):
        wanted = "an answer" if not isinstance(expected, Raises) else f"{expected} that says why"
        return f"The function ended in an error where {wanted} was expected."
    if isinstance(expected, Raises):
        return f"There is no meaningful answer here: raise {expected} that says so."
    if given is None:
        return "The function returned nothing: is there a `return`?"
    mine, theirs = (np.shape(value) for value in (expected, given))
    if not isinstance(expected, dict) and mine != theirs:
        return f"The answer has shape {theirs}; expected {mine}."
    if _numbers(given) and not np.all(np.isfinite(np.asarray(given, float))):
        return "The answer is not finite: look for a division by zero, log(0) or an overflow."
    return "The value is not the expected one."


def same(expected: Any, given: Any, tolerance: float) -> bool:
    """Return whether two answers are equal: numbers within a relative tolerance, all else wholly.

    Arrays, lists and tuples of numbers of one shape are alike; errors are equal in their kind.
    """
    if isinstance(expected, Raises | _Raised):
        kind = expected.kind if isinstance(expected, Raises) else type(expected.error)
        return isinstance(given, _Raised) and isinstance(given.error, kind)
    if isinstance(given, _Raised) or (given is None) != (expected is None):
        return False
    if isinstance(expected, Mapping):
        return (
            isinstance(given, Mapping)
            and expected.keys() == given.keys()
            and all(same(value, given[key], tolerance) for key, value in expected.items())
        )
    if _numbers(expected):
        return _close(expected, given, tolerance)
    if isinstance(expected, list | tuple):
        return (
            isinstance(given, list | tuple)
            and len(expected) == len(given)
            and all(same(e, g, tolerance) for e, g in zip(expected, given, strict=True))
        )
    return bool(expected == given)


def _numbers(value: Any) -> bool:
    if isinstance(value, Number | np.ndarray | np.generic):
        return True
    try:
        return np.asarray(value).dtype.kind in "biuf"
    except ValueError:
        return False


def _close(expected: Any, given: Any, tolerance: float) -> bool:
    if not _numbers(given):
        return False
    e, g = np.asarray(expected, float), np.asarray(given, float)
    return e.shape == g.shape and bool(
        np.allclose(g, e, rtol=tolerance, atol=1e-12 if tolerance else 0.0, equal_nan=True)
    )


def shown(value: Any) -> str:
    """Return a value as a learner would write it, not too long."""
    if isinstance(value, Raises | _Raised):
        return str(value)
    if isinstance(value, np.ndarray):
        inside = np.array2string(value, precision=6, separator=", ", threshold=2 * _SHOWN)
        return inside if value.ndim == 0 else f"np.array({inside})"
    if isinstance(value, float | np.floating):
        return str(value) if not math.isfinite(value) else f"{float(value):.10g}"
    if isinstance(value, np.generic):
        return str(value.item())
    if isinstance(value, list | tuple):
        inside = ", ".join(shown(item) for item in value[:_SHOWN])
        inside += ", …" if len(value) > _SHOWN else ""
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {shown(item)}" for key, item in value.items()) + "}"
    return repr(value)


def _shown_call(name: str, case: Case) -> str:
    return f"{name}({', '.join(shown(argument) for argument in case.arguments)})"


def _not_run(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}: {(error.text or '').strip()}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == FILE]
    place = f"line {frames[-1].lineno}: " if frames else ""
    return f"{place}{type(error).__name__}: {error}"


def _cut(printed: StringIO) -> str:
    text = printed.getvalue()
    return text if len(text) <= _PRINTED else text[:_PRINTED] + " …"
