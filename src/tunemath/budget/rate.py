"""How fast this machine multiplies matrices, so that a plan can speak of seconds."""

from __future__ import annotations

import time

import numpy as np

__all__ = ["measured_gflops"]

# (m, k, n), the smallest first: its time says which of the others fit.
_SHAPES = ((64, 576, 576), (512, 576, 1536), (1024, 1024, 1024))


def measured_gflops(seconds: float = 0.15) -> float:
    """Return the best rate of float32 NumPy matrix products, in GFLOP/s.

    A product of (m, k) with (k, n) takes 2 m k n operations. ``seconds`` are shared by three
    shapes; one that would not fit is left out, so a slow machine takes no longer.

    Valid as a prediction for the CPU, with as many threads as NumPy's BLAS uses, and only while
    nothing else runs.
    """
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds!r}; expected a number above 0")
    end = time.perf_counter() + seconds
    best = 0.0
    for index, (m, k, n) in enumerate(_SHAPES):
        flops = 2.0 * m * k * n
        if best and flops / best > end - time.perf_counter():
            break
        a, b = np.full((m, k), 0.5, np.float32), np.full((k, n), 0.25, np.float32)
        out = np.empty((m, n), np.float32)
        share = (end - time.perf_counter()) / (len(_SHAPES) - index)
        best = max(best, _best_rate(a, b, out, flops, time.perf_counter() + share))
    return best / 1e9


def _best_rate(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, flops: float, deadline: float
) -> float:
    """Return the best of repeated products until the deadline, in FLOP/s; at least two are made."""
    best, made = 0.0, 0
    while made < 2 or time.perf_counter() < deadline:
        start = time.perf_counter()
        np.matmul(a, b, out=out)
        best = max(best, flops / max(time.perf_counter() - start, 1e-9))
        made += 1
    return best
