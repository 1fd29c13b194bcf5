"""A drawing of matplotlib's as an element of a page, and as a file of its own."""

from __future__ import annotations

import re

import pytest

from tunemath.report import standalone_svg
from tunemath.report.svg import ACCENT, _inline, inline_svg


def drawn(size=(4.7, 3.0)) -> str:
    def paint(drawing) -> None:
        axes = drawing.subplots()
        axes.plot([0, 1], [0, 1], color=ACCENT, marker="o")
        axes.set_title("heavy", weight="bold", fontsize=9)

    return inline_svg("name", "A title", "in words", paint, size)


@pytest.mark.parametrize(("size", "view"), [((4.7, 3.0), "338.4 216"), ((5.0, 2.0), "360 144")])
def test_the_view_is_the_size_in_points(size, view):
    text = drawn(size)  # 72 points an inch
    assert re.match(
        rf'<svg viewBox="0 0 {view}" role="img" aria-labelledby="name-title name-alt">', text
    )
    file = standalone_svg(text)
    width, height = view.split()
    assert f'width="{width}" height="{height}"' in file
    assert f'<rect x="0" y="0" width="{width}" height="{height}"' in file
    assert "var(--" not in file


def test_a_font_keeps_its_size_and_its_weight():
    text = drawn()
    (heavy,) = re.findall(r"<text style=\"([^\"]*)\"[^>]*>heavy", text)
    assert "font-weight: 700" in heavy
    assert "font-size: 9px" in heavy
    ticks = re.findall(r"<text[^>]*>0\.[0-9]</text>", text)
    assert ticks
    assert all("font-size: 9px" in tick and "font-weight" not in tick for tick in ticks)


@pytest.mark.parametrize(
    ("shorthand", "style"),
    [
        ("9px 'DejaVu Sans'", "font-size: 9px"),
        ("700 12.5px 'DejaVu Sans'", "font-size: 12.5px; font-weight: 700"),
        ("italic bold 9px 'DejaVu Sans'", "font-size: 9px; font-weight: bold"),
        ("oblique 'DejaVu Sans'", "font-size: 9px"),
    ],
)
def test_a_font_in_one_word_as_older_versions_write_it_is_taken_apart(shorthand, style):
    text = f'<svg viewBox="0 0 1 1"><text style="font: {shorthand}; fill: red">a</text></svg>'
    assert f'<text style="{style}; fill: red">a</text>' in _inline(text, "n", "t", "a")


def test_only_ids_that_are_used_stay_and_paths_have_two_digits():
    text = drawn()
    ids = set(re.findall(r' id="([^"]*)"', text))
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    assert ids - used == {"name-title", "name-alt"}
    assert used <= ids
    assert used
    paths = re.findall(r' d="([^"]*)"', text)
    assert any(re.search(r"\.\d\d", path) for path in paths)
    assert not any(re.search(r"\.\d{3}", path) for path in paths)
