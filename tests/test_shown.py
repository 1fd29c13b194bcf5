"""Text of strangers: what a terminal obeys is none of what is shown, and all of it is short."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunemath.shown import clean, one_line, shown


@given(st.text(st.characters()))
def test_nothing_that_a_terminal_obeys_is_left(text):
    found = clean(text)
    left = {unicodedata.category(character) for character in found if character not in "\n\t"}
    assert not left & {"Cc", "Cs", "Zl", "Zp"}
    assert not any(unicodedata.bidirectional(c) in ("LRO", "RLO", "LRE", "RLE") for c in found)
    assert "\n" not in one_line(text)
    found.encode()


@given(st.recursive(st.text() | st.integers() | st.floats() | st.none(), st.lists, max_leaves=50))
def test_a_value_is_short_and_harmless(value):
    assert len(shown(value)) <= 80 * len("⟨U+0000⟩")
    assert shown(value) == one_line(shown(value))


def test_a_value_is_cut_before_it_is_written():
    bomb = ["x" * 100]
    for _ in range(60):
        bomb = [bomb] * 10  # 10^60 strings
    assert shown(bomb) == "[" * 61 + '"' + "x" * 15 + "..."
    assert shown(10**100_000) == "a whole number of 332,193 bits"
    assert shown({"a": {"b": object}}).startswith('{"a": {"b": "<class')


def test_a_value_that_holds_itself_is_shown():
    value: list = []
    value.append(value)
    assert shown(value) == "[" * 77 + "..."


@pytest.mark.parametrize(
    "text", ["a\nerror: b", "a\r\nb", "a\u2028b", "a\u2029b", "a\x85b", "a\x0bb"]
)
def test_a_message_forges_no_line(text):
    assert len(one_line(text).splitlines()) == 1


def test_a_message_is_of_some_kilobytes():
    assert len(one_line("x" * 10**7)) < 5000
