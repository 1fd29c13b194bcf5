"""Rows that are refused, told in one go: how many, and the first few with place and remedy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tunemath.errors import DataError, MaskError

__all__ = ["Refusals"]

_SHOWN = 10
_PATIENCE = 4.0
"""Seconds of the processor that refused rows may take together, where each takes long: a template
without an end would take some for each."""
_LONG = 0.1


class Refusals:
    """Collects what is wrong with rows, so that all of it can be told at once.

    Only the first ten are kept, however many there are.

    >>> refusals = Refusals("train.jsonl", "rows")
    >>> for line in (2, 5):
    ...     with refusals.collected():
    ...         raise DataError(f"train.jsonl:{line}: completion is empty")
    >>> refusals.raise_if_any(of=9)
    Traceback (most recent call last):
        ...
    tunemath.errors.DataError: train.jsonl: 2 of 9 rows are refused:
      train.jsonl:2: completion is empty
      train.jsonl:5: completion is empty
    """

    def __init__(self, name: str, what: str) -> None:
        self.name = name
        self.what = what
        self.count = 0
        self.first: list[str] = []
        self._seconds = 0.0

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Take down what is raised inside of one row; the next row can go on.

        Raises `DataError` for what there is so far where that took long already.
        """
        started = time.process_time()
        try:
            yield
        except (DataError, MaskError) as error:
            self.count += 1
            if len(self.first) < _SHOWN:
                self.first.append(str(error))
            self._seconds += time.process_time() - started
            if self._seconds > max(_PATIENCE, _LONG * self.count):
                raise DataError(
                    f"{self.name}: {self.count:,} {self.what} are refused so far; no more were "
                    "tried, as each takes long:",
                    self.first,
                ) from None

    def raise_if_any(self, of: int) -> None:
        """Raise `DataError` for all that was refused of so many; one alone stands as it is."""
        if self.count == 1:
            raise DataError(self.first[0])
        if self.count:
            more = self.count - len(self.first)
            shown = f"; the first {len(self.first)}" if more else ""
            raise DataError(
                f"{self.name}: {self.count:,} of {of:,} {self.what} are refused{shown}:", self.first
            )
