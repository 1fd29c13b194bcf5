from __future__ import annotations

import math
import sys

import pytest

from processes import output_of
from tunemath.report import text


@pytest.mark.parametrize(
    "function",
    [
        text.count,
        text.decimal,
        text.duration,
        text.flops,
        text.percent,
        text.points,
        text.scientific,
        text.size,
    ],
)
@pytest.mark.parametrize("absent", [None, math.nan, math.inf, "3", True])
def test_what_is_absent_says_so(function, absent) -> None:
    assert function(absent) == "not measured"


def test_intervals_and_p_values_say_so_too() -> None:
    for function in (text.interval, text.percent_interval, text.points_interval):
        assert function(None, 0.1) == "interval not measured"
    assert text.p_value(None) == "p not measured"


@pytest.mark.parametrize(
    ("p", "words"), [(1.0, "p = 1.000"), (0.0004, "p = 0.0004"), (0.00001, "p < 0.0001")]
)
def test_p_values(p: float, words: str) -> None:
    assert text.p_value(p) == words


def test_zero_has_no_sign() -> None:
    assert text.decimal(-0.0001) == "0.000"
    assert text.points(-0.0001) == "0.0 points"


@pytest.mark.parametrize("code", [*range(9), *range(11, 32), *range(127, 160), 0x202E, 0x2066])
def test_nothing_acts_on_the_terminal(code: int) -> None:
    assert chr(code) not in text.clean(f"a{chr(code)}b")


def test_importing_the_report_is_light() -> None:
    heavy = ("torch", "transformers", "peft", "matplotlib", "scipy", "jinja2", "yaml")
    code = f"import sys, tunemath.report; print([m for m in {heavy} if m in sys.modules])"
    assert output_of([sys.executable, "-c", code]).strip() == "[]"
