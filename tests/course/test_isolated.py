"""A learner's code in its own process: limits, and figures from it."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tunemath.course.book import exercise, exercises
from tunemath.course.grading import grade
from tunemath.course.isolated import graded, pictured


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


@pytest.mark.parametrize("each", exercises(), ids=lambda each: each.name)
def test_the_figure_is_drawn_with_the_learners_functions(each):
    pytest.importorskip("matplotlib")
    svg, error = pictured(each.name, each.solution)
    assert not error
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    nothing, why = pictured(each.name, each.starter)
    assert nothing == b""
    assert "can't be drawn with these functions" in why
