"""A learner's code in its own process: limits, and figures from it."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tunemath.course.book import exercise, exercises
from tunemath.course.grading import grade
from tunemath.course.isolated import graded, pictured, ran
from tunemath.errors import CourseError
from tunemath.extras import install_command


def test_it_grades_as_it_does_inside():
    one = exercise("1")
    source = one.solution.replace(".mean()", ".sum()")
    assert graded("1", source) == grade(source, one.parts)
    assert graded("1", one.solution).passed


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("while True: pass", "it ran for more than 1 seconds and was stopped"),
        ("import numpy\nx = numpy.ones(10**10)", "line 2: _ArrayMemoryError|line 2: MemoryError"),
        ("import os\nos._exit(3)", r"the code ended its process \(exit code 3\)"),
        ("exit()", "the code ended its process"),
        ("input()", "line 1: EOFError"),
    ],
)
def test_code_that_goes_too_far_is_stopped(source, error):
    found = graded("1", source, seconds=1 if "while" in source else 120)
    assert not found.passed
    assert re.search(error, found.error), found.error


def test_what_it_prints_does_not_disturb_the_grade():
    found = graded("1", "print('{\"parts\": []}')\n" + exercise("1").solution)
    assert found.passed
    assert found.printed == '{"parts": []}\n'


DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in range(3):
            os.close(fd)
        open({path!r}, "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
while not (os.path.exists({path!r}) and open({path!r}).read()):
    time.sleep(0.01)
"""


def ended(process: int) -> bool:
    """Whether a process is no more, or only waits to be reaped."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has /proc")
@pytest.mark.parametrize("call", [ran, graded, pictured])
def test_what_the_code_started_ends_with_it(tmp_path, call):
    """A child that leaves its session and is left by its parent, as daemons do."""
    path = tmp_path / "pid"
    call("1", DAEMON.format(path=str(path)) + exercise("1").solution)
    process = int(path.read_text())
    for _ in range(200):
        if ended(process):
            return
        time.sleep(0.05)
    pytest.fail(f"process {process} lives on")


@pytest.mark.parametrize("stream", ["sys.__stdout__", "open(1, 'w', closefd=False)"])
def test_a_result_that_the_code_writes_is_not_its_grade(stream):
    part = {"function": "f", "passed": True, "cases": 1, "right": 1}
    result = json.dumps({"parts": [part], "printed": "", "error": ""})
    source = f"import os, sys\nout = {stream}\nprint('\\n' + {result!r}, file=out, flush=True)\n"
    found = graded("1", source + "os._exit(0)")
    assert not found.passed
    assert "the code ended its process" in found.error
    assert not graded("1", source).passed


def test_a_figure_without_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CourseError, match=re.escape(install_command("learn"))):
        pictured("1", exercise("1").solution)


@pytest.mark.parametrize("each", exercises(), ids=lambda each: each.name)
def test_the_figure_is_drawn_with_the_learners_functions(each):
    pytest.importorskip("matplotlib")
    svg, error = pictured(each.name, each.solution)
    assert not error
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    nothing, why = pictured(each.name, each.starter)
    assert nothing == b""
    assert "can't be drawn with these functions" in why
