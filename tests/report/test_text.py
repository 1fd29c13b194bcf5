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
        assert function(0.1, None) == "interval not measured"
        assert function(0.1, math.nan) == "interval not measured"
    assert text.p_value(None) == "p not measured"


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (1.0, "p = 1.000"),
        (1e-3, "p = 0.001"),
        (9.6e-4, "p = 0.0010"),
        (0.0004, "p = 0.0004"),
        (1e-4, "p = 0.0001"),
        (math.nextafter(1e-4, 0), "p < 0.0001"),
        (0.0, "p < 0.0001"),
    ],
)
def test_p_values(p: float, words: str) -> None:
    assert text.p_value(p) == words


def test_zero_has_no_sign() -> None:
    assert text.decimal(-0.0001) == "0.000"
    assert text.points(-0.0001) == "0.0 points"


# The last figure of a unit and the first of the next.
@pytest.mark.parametrize(
    ("function", "value", "words"),
    [
        (text.duration, 0, "0.0 s"),
        (text.duration, 59.94, "59.9 s"),
        (text.duration, 59.95, "1 min 0 s"),
        (text.duration, 119.4, "1 min 59 s"),
        (text.duration, 119.6, "2 min 0 s"),
        (text.duration, 3599.4, "59 min 59 s"),
        (text.duration, 3599.6, "1 h 0 min"),
        (text.duration, 86_400, "24 h 0 min"),
        (text.size, 0, "0 bytes"),
        (text.size, 1023, "1023 bytes"),
        (text.size, 1024, "1.0 KiB"),
        (text.size, 2**20 - 2**10, "1,023.0 KiB"),
        (text.size, 2**20, "1.0 MiB"),
        (text.size, 2**30 - 2**20, "1,023.0 MiB"),
        (text.size, 2**30, "1.00 GiB"),
        (text.flops, 999_999, "999999 FLOP"),
        (text.flops, 1e6, "1.0 MFLOP"),
        (text.flops, 999e6, "999.0 MFLOP"),
        (text.flops, 1e9, "1.0 GFLOP"),
        (text.flops, 1e12, "1.0 TFLOP"),
        (text.flops, 1e15, "1.0 PFLOP"),
        (text.flops, 1e18, "1.0 EFLOP"),
        (text.count, -1234.4, "−1,234"),
        (text.decimal, 1234.5678, "1,234.568"),
        (text.percent, 0.12345, "12.3 %"),
        (text.points, 12.34, "+1,234.0 points"),
        (text.scientific, 12345.0, "1.23e4"),
        (text.scientific, -2.5e-7, "−2.5e−7"),
        (text.clean, "\x1f \ud7ff\ud800\udfff\ue000", "␟ \ud7ff\ufffd\ufffd\ue000"),
        (text.short_path, "a/b", "a/b"),
        (text.short_path, "a/b/c", "…/b/c"),
        (text.short_path, None, "none"),
    ],
)
def test_a_figure_changes_its_unit_where_it_should(function, value, words) -> None:
    assert function(value) == words


def test_a_text_of_exactly_the_limit_is_whole() -> None:
    assert text.clip("abcde", 5) == "abcde"
    assert text.clip("abcdef", 5) == "abcde… (1 characters more)"


@pytest.mark.parametrize("code", [*range(9), *range(11, 32), *range(127, 160), 0x202E, 0x2066])
def test_nothing_acts_on_the_terminal(code: int) -> None:
    assert chr(code) not in text.clean(f"a{chr(code)}b")


def test_importing_the_report_is_light() -> None:
    heavy = ("torch", "transformers", "peft", "matplotlib", "scipy", "jinja2", "yaml")
    code = f"import sys, tunemath.report; print([m for m in {heavy} if m in sys.modules])"
    assert output_of([sys.executable, "-c", code]).strip() == "[]"
