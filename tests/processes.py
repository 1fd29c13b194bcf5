"""Processes and threads that tests wait for: each wait has a limit, and no process outlives it."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

LIMIT = 240.0
"""Seconds: what hangs is to be caught, not a machine that is busy."""
_POLL = 0.01


class Started:
    """A process whose lines are read as they come, each within a limit."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.seen: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def line(self, seconds: float = LIMIT) -> str:
        """Return the next line of its output; empty when it is over."""
        try:
            found = self._lines.get(timeout=max(seconds, 0))
        except queue.Empty:
            raise AssertionError(f"no line within {seconds:g} s after {self.seen}") from None
        self.seen.append(found)
        return found

    def until(self, *words: str, seconds: float = LIMIT) -> str:
        """Return the first line that has any of the words."""
        end = time.monotonic() + seconds
        while line := self.line(end - time.monotonic()):
            if any(word in line for word in words):
                return line
        raise AssertionError(f"ended without {words}: {self.seen}")

    def rest(self, seconds: float = LIMIT) -> str:
        """Return all that it still prints."""
        end = time.monotonic() + seconds
        return "".join(iter(lambda: self.line(end - time.monotonic()), ""))

    def write(self, text: str) -> None:
        """Send text to its input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def ended(self, seconds: float = LIMIT) -> int:
        """Return its exit code once it has ended."""
        return self.process.wait(seconds)


@contextmanager
def started(
    command: Sequence[object], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Started]:
    """Start a process; at the end it is killed, with all that it started."""
    with _opened(command, cwd, env, stdin=subprocess.PIPE) as process:
        found = Started(process)
        try:
            yield found
        finally:
            _kill(process)
            found.reader.join(LIMIT)


def finished(
    command: Sequence[object],
    *,
    seconds: float = LIMIT,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a process to its end; after so many seconds it is killed, with all that it started."""
    pipes = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with _opened(command, cwd, env, **pipes) as process:
        out, err = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def output_of(command: Sequence[object], **options: object) -> str:
    """Run a process to its end and return what it printed; it has to end well."""
    done = finished(command, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    return done.stdout


def eventually(condition: Callable[[], object], seconds: float = LIMIT) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so within {seconds:g} s"
        time.sleep(_POLL)


def joined(thread: threading.Thread, seconds: float = LIMIT) -> None:
    """Wait for a thread's end."""
    thread.join(seconds)
    assert not thread.is_alive(), f"still runs after {seconds:g} s"


@contextmanager
def _opened(
    command: Sequence[object], cwd: Path | None, env: Mapping[str, str] | None, **pipes: int
) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*map(str, command)], cwd=cwd, env=env, text=True, start_new_session=True,
        stdout=subprocess.PIPE, **pipes,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError, PermissionError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
