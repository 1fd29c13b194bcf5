from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tunemath.budget import measured_gflops, rate

SHAPES = [2 * 64 * 576 * 576, 2 * 512 * 576 * 1536, 2 * 1024**3]


class Machine:
    """A clock that only matrix products move on, at a rate that depends on their size."""

    def __init__(self, *gflops: float) -> None:
        self.now = 100.0
        self.rates = dict(zip(SHAPES, gflops, strict=True))
        self.full, self.empty, self.float32 = np.full, np.empty, np.float32

    def perf_counter(self) -> float:
        return self.now

    def matmul(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        assert out.shape == (len(a), b.shape[1])
        flops = 2 * a.size * b.shape[1]
        self.now += flops / self.rates[flops] / 1e9


@pytest.mark.parametrize(
    ("gflops", "best", "most"),
    [
        ((100, 200, 400), 400, 0.17),
        ((400, 200, 100), 400, 0.17),
        ((2, 2, 2), 2, 0.19),  # the larger two would not fit
        ((0.1, 9, 9), 0.1, 0.85),  # two products of the smallest are made in any case
    ],
)
def test_the_best_rate_is_measured_in_the_time_given(monkeypatch, gflops, best, most):
    machine = Machine(*gflops)
    monkeypatch.setattr(rate, "np", machine)
    monkeypatch.setattr(rate, "time", SimpleNamespace(perf_counter=machine.perf_counter))
    assert measured_gflops(0.15) == pytest.approx(best)
    assert machine.now - 100.0 < most


def test_this_machine_has_a_rate():
    assert 0 < measured_gflops(0.01) < 1e6


def test_bad_input():
    with pytest.raises(ValueError, match="seconds is 0"):
        measured_gflops(0)
