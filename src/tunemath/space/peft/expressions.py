"""Regular expressions that an adapter's configuration holds: used as PEFT does, but not for ever.

A repetition of what can match in several ways can take time exponential in a name's length, and
PEFT itself would never end. The expressions stay those of Python's ``re``, since PEFT's meaning is
theirs.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tunemath.errors import ModelError
from tunemath.patience import OutOfPatienceError, patience

__all__ = ["Expression", "compiled", "hold_expressions", "pattern_test"]

Test = Callable[[str], "re.Match[str] | None"]

_PATIENCE = 5.0
_SLOW = 0.05  # seconds from which on a match counts; the quick ones are not added up
_FIELDS = ("target_modules", "exclude_modules", "feedforward_modules")
_PATTERNS = ("rank_pattern", "alpha_pattern")
_CHOICES = re.compile(r"[*+?{|]")  # with fewer than two, there is little to try


class Expression:
    """A compiled expression; ``given`` is the part of it that the user wrote.

    Raises `ModelError` where it is none, or where its slow matches have taken more than 5 s.
    """

    def __init__(self, pattern: str, given: str) -> None:
        self.given = given
        try:
            self._pattern = re.compile(pattern)
        except (re.error, OverflowError, RecursionError, MemoryError) as error:
            raise ModelError(
                f"{given!r:.200} is used as a regular expression, and is not a valid one ({error})"
            ) from None
        self._quick = len(_CHOICES.findall(given)) < 2
        self._left = _PATIENCE

    def match(self, name: str) -> re.Match[str] | None:
        """Match at the beginning of a name."""
        return self._patiently(self._pattern.match, name)

    def fullmatch(self, name: str) -> re.Match[str] | None:
        """Match the whole of a name."""
        return self._patiently(self._pattern.fullmatch, name)

    def search(self, name: str) -> re.Match[str] | None:
        """Match anywhere in a name."""
        return self._patiently(self._pattern.search, name)

    def _patiently(
        self, matching: Callable[[str], re.Match[str] | None], name: str
    ) -> re.Match[str] | None:
        if self._quick:
            return matching(name)
        started = time.process_time()
        try:
            if self._left <= 0:
                raise OutOfPatienceError
            with patience(self._left):
                return matching(name)
        except OutOfPatienceError:
            raise ModelError(
                f"the regular expression {self.given!r:.200} takes more than {_PATIENCE:g} s to be "
                f"held against {name!r:.80}, and would in PEFT too; write it without a repetition "
                "inside another"
            ) from None
        finally:
            taken = time.process_time() - started
            self._left -= taken if taken > _SLOW else 0


@functools.lru_cache(256)
def compiled(pattern: str, given: str) -> Expression:
    """Return a compiled pattern; ``given`` is the part of it that the user wrote."""
    return Expression(pattern, given)


def pattern_test(pattern: str) -> Test:
    """Return whether a pattern of ``rank_pattern`` means a name, whole or after a dot."""
    return compiled(rf"(.*\.)?({pattern})$", pattern).match


def hold_expressions(config: Mapping[str, Any], names: Iterable[str]) -> None:
    """Hold each expression of a PEFT configuration against every name, before PEFT does so.

    Raises `ModelError` where one is none, or does not end.
    """
    given = [config.get(field) for field in _FIELDS]
    tests: list[Test] = [compiled(each, each).fullmatch for each in given if isinstance(each, str)]
    tests += [pattern_test(key) for field in _PATTERNS for key in config.get(field) or {}]
    for name in names:
        for test in tests:
            test(name)
