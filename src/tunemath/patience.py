"""A limit on processor time, for what a stranger's text makes this program compute."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["OutOfPatienceError", "patience"]

_AGAIN = 0.5


class OutOfPatienceError(Exception):
    """The time is up. No `ValueError`, which what runs inside might take for its own."""


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Raise `OutOfPatienceError` inside after so many seconds of this process's own time.

    Processor time, so that a busy machine is no reason. Python looks for signals between its
    instructions, and its regular expressions and long integers do while they work. There is no
    limit outside the main thread, where Python delivers no signal, and none on Windows.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield
        return

    inside = True

    def stop(number: int, frame: Any) -> None:
        if not inside:  # between its end and the timer's
            return
        raise OutOfPatienceError(f"it takes more than {seconds:g} s of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    left, every = signal.setitimer(signal.ITIMER_VIRTUAL, seconds, _AGAIN)
    try:
        yield
    finally:
        inside = False
        signal.setitimer(signal.ITIMER_VIRTUAL, left, every)
        signal.signal(signal.SIGVTALRM, before)
