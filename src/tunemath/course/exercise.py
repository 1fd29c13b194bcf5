"""What an exercise asks for: functions to write, cases that they are held against, mistakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Case", "Mistake", "Part", "Raises"]


@dataclass(frozen=True)
class Raises:
    """The answer to a question that has none: an error of this kind."""

    kind: type[Exception] = ValueError

    def __str__(self) -> str:
        return f"a {self.kind.__name__}"


@dataclass(frozen=True)
class Case:
    """Arguments to call a learner's function with."""

    arguments: tuple[Any, ...]
    why: str = ""
    """What is special about it, as an edge case; said when it goes wrong."""


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that many give, and what to say to it."""

    name: str
    answer: Callable[..., Any]
    """The function as it is when the mistake is made."""
    message: str


@dataclass(frozen=True)
class Part:
    """A function that the learner writes."""

    function: str
    oracle: Callable[..., Any]
    """The right answer, by a plain loop; a `ValueError` where there is none."""
    published: Case
    """The case with an answer that is known from outside."""
    answer: Any
    """That answer."""
    draw: Callable[[np.random.Generator, int], Case]
    """A random case of about a given size, from 1."""
    mistakes: Sequence[Mistake]
    edges: Sequence[Case] = field(default=())
    tolerance: float = 1e-6
    """Relative, of any number in an answer."""
