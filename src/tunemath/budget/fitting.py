"""The largest setting that fits a device."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["largest"]


def largest(fits: Callable[[int], bool], *, most: int, step: int = 1) -> int:
    """Return the largest multiple of ``step`` up to ``most`` that fits; 0 where none does.

    ``fits`` is asked some log2(most / step) times; what fits must fit when it is smaller too.

    >>> largest(lambda rows: rows * 3 <= 100, most=64)
    33
    """
    low, high = 0, most // step
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * step) else (low, middle - 1)
    return low * step
