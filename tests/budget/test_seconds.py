"""Seconds of each kind of work, by hand."""

from __future__ import annotations

import pytest

from tunemath.budget import Work, seconds_of


# At 100 GFLOP/s; the shares of that rate, seconds a load and bytes a second are as in seconds.py.
@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        (Work(), 0),
        (Work(forward=8e11), 10),
        (Work(training=4.7e11), 10),
        (Work(decoding=3e11), 10),
        (Work(loads=4), 6),
        (Work(hashed_bytes=5e9), 5),
        (Work(kl_values=4.5e8), 3),
        (Work(8e11, 4.7e11, 3e11, 4, 5e9, 4.5e8), 44),
    ],
)
def test_seconds_of_work_by_hand(work, seconds):
    assert seconds_of(work, gflops=100.0) == pytest.approx(seconds, rel=1e-12)


def test_reading_takes_as_long_on_a_fast_processor():
    reading = Work(loads=2, hashed_bytes=1e9, kl_values=1.5e8)
    assert seconds_of(reading, 1.0) == seconds_of(reading, 1000.0) == pytest.approx(5)
    assert seconds_of(Work(training=1e12), 10) == 10 * seconds_of(Work(training=1e12), 100)
