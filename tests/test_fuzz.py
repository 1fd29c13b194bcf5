"""A seeded sample of `make fuzz`: the commands answer or refuse, whatever is in their files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from processes import finished

FUZZ = Path(__file__).with_name("fuzz.py")


@pytest.mark.slow
def test_damaged_files_end_in_an_answer_or_a_refusal():
    done = finished(
        [sys.executable, "-W", "ignore", FUZZ, "--cases", "150", "--jobs", "2"], seconds=1200
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "150 cases, 0 faults" in done.stdout
