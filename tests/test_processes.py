"""What tests wait for has a limit, and nothing that they start outlives them."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import tomllib
from pathlib import Path
from threading import Event, Thread

import pytest

from processes import eventually, finished, joined, output_of, started

SILENT = [sys.executable, "-c", "print('one', flush=True); import time; time.sleep(3600)"]
HOLDS = """
import fcntl, subprocess, sys, time
if len(sys.argv) == 2:
    subprocess.run([sys.executable, "-c", open(sys.argv[1]).read(), sys.argv[1], "child"])
with open(sys.argv[1]) as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(3600)
"""


def test_a_line_that_does_not_come_is_no_hang():
    with started(SILENT) as process:
        assert process.line() == "one\n"
        with pytest.raises(AssertionError, match=r"no line within 0.1 s after \['one"):
            process.line(seconds=0.1)
        with pytest.raises(AssertionError, match="no line within"):
            process.until("two", seconds=0.1)
    assert process.ended() == -9


def test_the_end_comes_before_the_words():
    with started([sys.executable, "-c", "print('one')"]) as process:
        with pytest.raises(AssertionError, match="ended without"):
            process.until("two")
        assert process.ended() == 0


def test_a_process_that_does_not_end_is_killed_with_what_it_started(tmp_path):
    source = tmp_path / "holds.py"
    source.write_text(HOLDS)
    with started([sys.executable, source, source]) as process:
        assert process.line() == "held\n"  # the child's
    with source.open() as file:
        eventually(lambda: _taken(file), seconds=60)


def _taken(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def test_waiting_has_a_limit():
    with pytest.raises(subprocess.TimeoutExpired):
        finished(SILENT, seconds=0.1)
    with pytest.raises(AssertionError, match=r"not so within 0.05 s"):
        eventually(lambda: False, seconds=0.05)
    go = Event()
    thread = Thread(target=go.wait)
    thread.start()
    with pytest.raises(AssertionError, match=r"still runs after 0.05 s"):
        joined(thread, seconds=0.05)
    go.set()
    joined(thread)


def test_what_ends_badly_shows_why():
    assert output_of([sys.executable, "-c", "print(1)"]) == "1\n"
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        output_of([sys.executable, "-c", "1 / 0"])


def test_every_test_has_a_limit(request):
    options = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    options = options["tool"]["pytest"]["ini_options"]
    assert 0 < int(options["timeout"]) <= 900
    assert options["timeout_method"] == "signal"  # a thread's ends the session, not the test
    assert request.config.pluginmanager.hasplugin("timeout")
