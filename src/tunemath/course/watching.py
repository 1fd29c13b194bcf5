"""Watch mode: grade each time an answer is saved, and go on when it is right."""

from __future__ import annotations

import queue
import sys
import threading
import time
from pathlib import Path

from rich.console import Console

from tunemath.course.book import Exercise
from tunemath.course.isolated import graded
from tunemath.course.terminal import graded as shown
from tunemath.course.terminal import listed, markdown, question
from tunemath.course.workspace import Workspace

__all__ = ["watched"]

_PAUSE = 0.15
_KEYS = (
    "[dim]h[/dim] hint   [dim]n[/dim] next   [dim]l[/dim] list   [dim]q[/dim] quit   (then Enter)"
)


def watched(workspace: Workspace, exercise: Exercise | None) -> None:
    """Show an exercise, grade its file when it is saved, and go on to the next; q ends it."""
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


def _until_right(
    workspace: Workspace,
    exercise: Exercise,
    path: Path,
    typed: queue.Queue[str],
    console: Console,
) -> bool:
    """Return when the answer is right or passed over; false to end."""
    seen, right = _state(path), workspace.progress()[exercise.name]["passed"]
    while True:
        now = _state(path)
        if now is not None and now != seen:
            found = graded(exercise.name, workspace.source(exercise))
            workspace.record(exercise, found)
            console.rule(style="dim")
            console.print(shown(found))
            if found.passed:
                right = True
                console.print("\n  Right. n and Enter goes on.\n", style="green")
        seen = now
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


def _state(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is saved; None while an editor replaces it."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _read(typed: queue.Queue[str]) -> None:
    for line in sys.stdin:
        typed.put(line.strip().lower()[:1])
    while not sys.stdin.isatty():  # input that was piped is over: the file alone is watched
        time.sleep(3600)
