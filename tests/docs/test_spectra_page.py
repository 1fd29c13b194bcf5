"""The page on spectra: its example gives what it says."""

from __future__ import annotations

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/space/spectra.md"


def test_the_example_gives_what_it_says():
    ran = doctest.testfile(str(PAGE), module_relative=False)
    assert ran.attempted > 0
    assert ran.failed == 0
