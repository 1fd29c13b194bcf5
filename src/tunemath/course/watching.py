"""Watch mode: grade each time an answer is saved, and go on when it is right."""

from __future__ import annotations

import os
import queue
import sys
import threading
from pathlib import Path

from rich.console import Console

from tunemath.course.book import Exercise
from tunemath.course.isolated import graded
from tunemath.course.terminal import graded as shown
from tunemath.course.terminal import listed, markdown, question
from tunemath.course.workspace import Workspace

__all__ = ["Saves", "watched"]

_PAUSE = 0.15
_KEYS = (
    "[dim]h[/dim] hint   [dim]n[/dim] next   [dim]l[/dim] list   [dim]q[/dim] quit   (then Enter)"
)


def watched(workspace: Workspace, exercise: Exercise | None) -> None:
    """Show an exercise, grade its file when it is saved, and go on to the next; q ends it.

    What was written into the file before is graded first.
    """
    console = Console()
    typed: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(typed,), daemon=True).start()
    while exercise is not None:
        path = workspace.open(exercise)
        console.print(question(exercise))
        console.print(f"\n  Watching {path} ({_KEYS})\n")
        if not _until_right(workspace, exercise, path, typed, console):
            return
        exercise = workspace.next()
    console.print("\n  All ten done. Next: `tunemath init`, and a contract of your own.\n")


class Saves:
    """The saves of a file, each given once, however an editor writes it and whenever.

    A save is another content, time or inode than was given last; the file is read each time,
    because two saves within one tick of the file system's clock may differ in their content alone.
    It counts when two looks in a row find the same, so half a save is none; nor is a file that is
    gone while an editor replaces it. The starter that the file begins with is no save.
    """

    def __init__(self, path: Path, starter: str) -> None:
        self._path = path
        self._starter = starter.encode()
        self._given: _State | None = None
        self._last: _State | None = None

    def new(self) -> bytes | None:
        """Look at the file; return its content if it was saved, else None."""
        now = _state(self._path)
        whole, self._last = now == self._last, now
        if now is None or not whole or now == self._given:
            return None
        first, self._given = self._given is None, now
        return None if first and now[0] == self._starter else now[0]


def _until_right(
    workspace: Workspace,
    exercise: Exercise,
    path: Path,
    typed: queue.Queue[str],
    console: Console,
) -> bool:
    """Return when the answer is right or passed over; false to end."""
    saves, right = Saves(path, exercise.starter), workspace.progress()[exercise.name]["passed"]
    while True:
        saved = saves.new()
        if saved is not None and _grade(workspace, exercise, saved, console):
            right = True
        try:
            key = typed.get(timeout=_PAUSE)
        except queue.Empty:
            continue
        if key == "q":
            return False
        if key == "h":
            console.print(markdown(workspace.hint(exercise) or "That were all three hints."))
        elif key == "l":
            console.print(listed(workspace))
        elif key == "n":
            if right:
                return True
            console.print("  Not right yet; `tunemath learn NUMBER --watch` takes another.")


def _grade(workspace: Workspace, exercise: Exercise, saved: bytes, console: Console) -> bool:
    """Grade what was saved and show it; return whether it is right."""
    console.rule(style="dim")
    try:
        source = saved.decode()
    except UnicodeDecodeError as error:
        console.print(f"  The file cannot be read ({error}); save it as UTF-8 text.", style="red")
        return False
    found = graded(exercise.name, source)
    workspace.record(exercise, found)
    console.print(shown(found))
    if found.passed:
        console.print("\n  Right. n and Enter goes on.\n", style="green")
    return found.passed


_State = tuple[bytes, int, int]


def _state(path: Path) -> _State | None:
    """Return what a save changes: content, time, inode; None where there is no file to read."""
    try:
        with path.open("rb") as file:
            content = file.read()
            found = os.fstat(file.fileno())
    except OSError:
        return None
    return content, found.st_mtime_ns, found.st_ino


def _read(typed: queue.Queue[str]) -> None:
    for line in sys.stdin:
        typed.put(line.strip().lower()[:1])
