from __future__ import annotations

import time

import numpy as np
import pytest

from tunemath.budget import measured_gflops


def test_the_rate_is_measured_in_the_time_given():
    walls = []
    for _ in range(3):
        start = time.perf_counter()
        rate = measured_gflops()
        walls.append(time.perf_counter() - start)
    assert min(walls) < 0.3
    a = np.full((1024, 1024), 0.5, np.float32)
    np.matmul(a, a)
    start = time.perf_counter()
    np.matmul(a, a)
    once = 2 * 1024**3 / (time.perf_counter() - start) / 1e9
    assert 0.1 * once < rate < 100 * once


def test_bad_input():
    with pytest.raises(ValueError, match="seconds is 0"):
        measured_gflops(0)
