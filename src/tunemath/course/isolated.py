"""A learner's code in a process of its own, with limits on time and memory.

The limits keep an endless loop or a huge array from taking the machine along, and what the code
starts ends with it. They are no protection from code that means harm, which is the learner's own,
on the learner's machine: how many files it writes and processes it starts is not limited, one that
empties its environment is not found again, and who looks for the secret can forge a grade.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import linecache
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from tunemath.course.grading import FILE, Grade, PartGrade
from tunemath.errors import CourseError
from tunemath.extras import install_command

__all__ = ["SECONDS", "Ran", "graded", "pictured", "ran"]

SECONDS = 10
"""How long an answer may run."""
_BYTES = 2 * 2**30
_WRITTEN = 16 * 2**20
_SHOWN = 20_000
_POLL = 0.01
_SWEEPS = 20
_MARK = "TUNEMATH_ANSWER"
"""A variable by which what the code started is found, whatever became of its parent."""


@dataclass(frozen=True)
class Ran:
    """What a process left behind."""

    printed: str
    errors: str
    """What it wrote to standard error: a traceback, warnings."""
    ended: str = ""
    """Why it did not end by itself; empty where it did."""
    code: int = 0
    """Its exit code."""


def ran(
    name: str, source: str, seconds: float = SECONDS, stop: threading.Event | None = None
) -> Ran:
    """Run an answer as a script; what it printed is kept when it is stopped, too."""
    done = _process("run", name, f"\n{source}", seconds, stop)
    return replace(done, printed=_cut(done.printed), errors=_cut(done.errors))


def graded(
    name: str, source: str, seconds: float = SECONDS, stop: threading.Event | None = None
) -> Grade:
    """Grade an answer to an exercise in another process."""
    found = _run("grade", name, source, seconds, stop)
    if "error" in found and "parts" not in found:
        return Grade((), error=found["error"])
    parts = tuple(PartGrade(**part) for part in found["parts"])
    return Grade(parts, found["printed"], found["error"])


def pictured(
    name: str, source: str, seconds: float = 3 * SECONDS, stop: threading.Event | None = None
) -> tuple[bytes, str]:
    """Return an exercise's figure as SVG, drawn with the learner's own functions, or why not."""
    if importlib.util.find_spec("matplotlib") is None:
        raise CourseError(f"drawing needs matplotlib; run: {install_command('learn')}")
    found = _run("figure", name, source, seconds, stop)
    return base64.b64decode(found.get("svg", "")), found.get("error", "")


def _run(
    what: str, name: str, source: str, seconds: float, stop: threading.Event | None
) -> dict[str, Any]:
    secret = secrets.token_hex(16)  # by which our own result is told from what the code prints
    done = _process(what, name, f"{secret}\n{source}", seconds, stop)
    if done.ended:
        return {"error": done.ended}
    try:
        own = [line for line in done.printed.splitlines() if line.startswith(secret)]
        return json.loads(own[-1].removeprefix(secret))
    except (IndexError, ValueError):
        last = (done.errors.strip().splitlines() or ["no message"])[-1]
        return {"error": f"the code ended its process (exit code {done.code}): {last}"}


def _process(
    what: str, name: str, source: str, seconds: float, stop: threading.Event | None
) -> Ran:
    """Run this module in a process of its own until it ends, time is up or ``stop`` is set."""
    mark = secrets.token_hex(16)
    environment = {
        **os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8", _MARK: mark,
    }  # fmt: skip
    command = [sys.executable, "-m", "tunemath.course.isolated", what, name]
    with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err:
        given.write(source.encode())
        given.seek(0)
        process = subprocess.Popen(
            command, stdin=given, stdout=out, stderr=err, env=environment, start_new_session=True
        )
        try:
            ended = _awaited(process, seconds, stop)
        finally:
            _end(process)
            _end_marked(mark)
        return Ran(_text(out), _text(err), ended, process.returncode)


def _awaited(process: subprocess.Popen[bytes], seconds: float, stop: threading.Event | None) -> str:
    """Wait for a process; return why it has to be ended, empty if it ended by itself."""
    until = time.monotonic() + seconds
    while process.poll() is None:
        if stop is not None and stop.is_set():
            return "it was stopped"
        if time.monotonic() > until:
            return (
                f"it ran for more than {seconds:g} seconds and was stopped: a loop that doesn't "
                "end?"
            )
        time.sleep(_POLL)
    return ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _end_marked(mark: str) -> None:
    """End processes that left the code's group, as daemons do; Linux tells which they are."""
    wanted = f"{_MARK}={mark}".encode()
    for _ in range(_SWEEPS):  # one that forks meanwhile is found the next time
        found = False
        for place in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # ended, or another user's
                if wanted in place.read_bytes().split(b"\0"):
                    os.kill(int(place.parent.name), signal.SIGKILL)
                    found = True
        if not found:
            return
        time.sleep(_POLL)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _cut(text: str) -> str:
    if len(text) <= _SHOWN:
        return text
    return f"{text[:_SHOWN]}\n… {len(text) - _SHOWN:,} more characters"


def _limit() -> None:
    """Hold this process's memory, processor time and the size of what it writes."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (6 * SECONDS, 6 * SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_WRITTEN, _WRITTEN))


def _main(what: str, name: str) -> None:
    from tunemath.course.book import exercise
    from tunemath.course.grading import grade, run

    chosen, out = exercise(name), sys.stdout
    secret, _, source = sys.stdin.read().partition("\n")
    _limit()
    sys.stdin = open(os.devnull)  # noqa: SIM115
    if what == "run":
        _script(source)
        return
    sys.stdout = sys.stderr
    if what == "grade":
        found = grade(source, chosen.parts)
        result: dict[str, Any] = asdict(found)
    else:
        names, error = run(source)
        result = {"error": error}
        if not error:
            result = _svg(chosen, names)
    out.write(f"\n{secret}{json.dumps(result)}\n")


def _script(source: str) -> None:
    """Run code as a script; a traceback begins at the learner's own line."""
    linecache.cache[FILE] = (len(source), None, source.splitlines(keepends=True), FILE)
    try:
        exec(compile(source, FILE, "exec"), {"__name__": "__main__"})
    except Exception as error:
        place = error.__traceback__
        while place is not None and place.tb_frame.f_code.co_filename != FILE:
            place = place.tb_next
        traceback.print_exception(error.with_traceback(place))
        sys.exit(1)


def _svg(chosen: Any, names: dict[str, Any]) -> dict[str, str]:
    from io import BytesIO

    try:
        figure = chosen.figure(names)
    except Exception as error:
        return {"error": f"the figure can't be drawn with these functions: {error!r}"}
    buffer = BytesIO()
    figure.savefig(buffer, format="svg")
    return {"svg": base64.b64encode(buffer.getvalue()).decode(), "error": ""}


if __name__ == "__main__":
    _main(*sys.argv[1:])
