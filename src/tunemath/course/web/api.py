"""What the page asks for, as data: exercises, grades, hints, figures; without HTTP.

Every answer is a dictionary that JSON can hold. What can't be done is a `Refused`, with a status
of HTTP and a sentence for the learner.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tunemath.course.book import Exercise, exercise, exercises
from tunemath.course.grading import PartGrade
from tunemath.course.isolated import SECONDS, graded, pictured, ran
from tunemath.course.web.markup import code, html, line
from tunemath.course.workspace import Workspace
from tunemath.errors import CourseError
from tunemath.storage import hash_bytes

__all__ = ["Api", "Refused"]


_LAST = 5
"""Seconds that a process has to end in."""


class Refused(Exception):
    """A request that is not carried out: a status of HTTP and the reason."""

    def __init__(self, status: int, reason: str, **more: Any) -> None:
        super().__init__(reason)
        self.status = status
        self.body = {"error": reason, **more}


class Api:
    """The course on a learner's folder; from several threads, one piece of code at a time."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.seconds: float = SECONDS
        """How long code may run; three times as long for a figure, which imports matplotlib."""
        self._files = threading.RLock()
        self._running = threading.Lock()
        self._stop = threading.Event()
        self._actions: Mapping[str, Callable[[Exercise, Mapping[str, Any]], dict[str, Any]]] = {
            "open": self._open,
            "save": self._save,
            "run": self._run,
            "grade": self._grade,
            "figure": self._figure,
            "hint": self._hint,
            "solution": self._solution,
            "reset": self._reset,
        }

    def answer(self, action: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return what an action gives: ``{"exercise": name, "source": …, "version": …}``."""
        if action == "list":
            return self._list()
        if action == "stop":
            self.stop()
            return {}
        if action not in self._actions:
            raise Refused(404, f"there is no {action!r} here")
        try:
            chosen = exercise(_text(asked, "exercise"))
            return self._actions[action](chosen, asked)
        except CourseError as error:
            raise Refused(404 if "no exercise" in str(error) else 409, str(error)) from error

    def stop(self) -> None:
        """End the code that is running, if there is any."""
        self._stop.set()

    def close(self) -> None:
        """End the code that is running and wait until it has; nothing can be run afterwards."""
        self.stop()
        self._running.acquire(timeout=_LAST)

    def _list(self) -> dict[str, Any]:
        with self._files:
            progress, following = self.workspace.progress(), self.workspace.next()
        return {
            "exercises": [
                {"number": each.number, "name": each.name, "title": each.title,
                 **progress[each.name]}
                for each in exercises()
            ],
            "next": following.name if following else None,
            "folder": str(self.workspace.folder),
        }  # fmt: skip

    def _open(self, chosen: Exercise, _: Mapping[str, Any]) -> dict[str, Any]:
        with self._files:
            path = self.workspace.open(chosen)
            progress = self.workspace.progress()[chosen.name]
            source = self.workspace.source(chosen)
        return {
            "number": chosen.number,
            "name": chosen.name,
            "title": chosen.title,
            "question": html(chosen.question),
            "second": html(chosen.second),
            "hints": [html(hint) for hint in chosen.hints[: int(progress["hints"])]],
            "all_hints": len(chosen.hints),
            "practice": html(chosen.practice),
            "sources": html(chosen.sources),
            "passed": progress["passed"],
            "file": str(path),
            "source": source,
            "version": _version(source),
        }

    def _save(self, chosen: Exercise, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Keep an answer, unless its file was changed by another since the page read it."""
        source, version = _text(asked, "source"), _text(asked, "version")
        try:
            source.encode()
        except UnicodeEncodeError:
            raise Refused(400, "the answer holds half a character (a lone surrogate)") from None
        with self._files:
            now = self.workspace.source(chosen)
            if version != _version(now) and now != source:
                raise Refused(
                    409, f"{self.workspace.path(chosen)} was changed outside this page",
                    source=now, version=_version(now),
                )  # fmt: skip
            if now != source:
                self.workspace.save(chosen, source)
        return {"version": _version(source)}

    def _run(self, chosen: Exercise, asked: Mapping[str, Any]) -> dict[str, Any]:
        with self._alone():
            saved = self._save(chosen, asked)
            done = ran(chosen.name, asked["source"], self.seconds, self._stop)
        return {
            **saved, "printed": done.printed, "errors": done.errors, "ended": done.ended,
            "code": done.code,
        }  # fmt: skip

    def _grade(self, chosen: Exercise, asked: Mapping[str, Any]) -> dict[str, Any]:
        with self._alone():
            saved = self._save(chosen, asked)
            found = graded(chosen.name, asked["source"], self.seconds, self._stop)
            if not self._stop.is_set():
                with self._files:
                    self.workspace.record(chosen, found)
        return {
            **saved,
            "passed": found.passed,
            "error": found.error,
            "printed": found.printed,
            "parts": [_part(part) for part in found.parts],
            "list": self._list(),
        }

    def _figure(self, chosen: Exercise, asked: Mapping[str, Any]) -> dict[str, Any]:
        with self._alone():
            saved = self._save(chosen, asked)
            svg, error = pictured(chosen.name, asked["source"], 3 * self.seconds, self._stop)
        return {**saved, "svg": svg.decode(), "error": error}

    def _hint(self, chosen: Exercise, _: Mapping[str, Any]) -> dict[str, Any]:
        with self._files:
            hint = self.workspace.hint(chosen)
        return {"hint": None if hint is None else html(hint), "list": self._list()}

    def _solution(self, chosen: Exercise, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"solution": code(chosen.solution)}

    def _reset(self, chosen: Exercise, asked: Mapping[str, Any]) -> dict[str, Any]:
        with self._files:
            kept = self.workspace.reset(chosen)
        return {
            **self._open(chosen, asked), "kept": str(kept) if kept else "", "list": self._list()
        }  # fmt: skip

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._running.acquire(blocking=False):
            raise Refused(429, "code is running already, maybe from another tab; stop it first")
        try:
            self._stop.clear()
            yield
        finally:
            self._running.release()


def _text(asked: Mapping[str, Any], key: str) -> str:
    value = asked.get(key)
    if not isinstance(value, str):
        raise Refused(400, f"{key!r} is missing or is no text")
    return value


def _version(source: str) -> str:
    return hash_bytes(source.encode())


def _part(part: PartGrade) -> dict[str, Any]:
    return {
        "function": part.function,
        "passed": part.passed,
        "cases": part.cases,
        "right": part.right,
        "call": part.call,
        "expected": part.expected,
        "given": part.given,
        "why": part.why,
        "mistake": part.mistake,
        "message": line(part.message),
    }
