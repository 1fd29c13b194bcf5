"""What the preference losses ask of their arguments, and the errors when they don't get it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

from tunemath.arrays import known, number, numeric, same_shape
from tunemath.errors import ShapeError

__all__ = [
    "above_zero",
    "answers",
    "finite",
    "one_number",
    "smoothing",
    "token_counts",
    "unknown_name",
]


def answers(**log_probs: Any) -> tuple[Any, ...]:
    """Return the array namespace of the log-probabilities, and each as an array; one shape only.

    >>> xp, chosen, rejected = answers(policy_chosen=[-1.0], policy_rejected=[-2.0])
    >>> (chosen - rejected).tolist()
    [1.0]
    """
    xp, *arrays = numeric(*log_probs.values())
    same_shape(**dict(zip(log_probs, arrays, strict=True)))
    return xp, *arrays


def token_counts(xp: Any, like: Any, **lengths: Any) -> tuple[Any, ...]:
    """Return each length in tokens as an array of the shape, library and dtype of ``like``."""
    counts = []
    for name, length in lengths.items():
        _, log_prob, count = numeric(like, length)
        same_shape(**{name: count, "log-probabilities": log_prob})
        whole = (count >= 1) & (count < math.inf) & (count == xp.floor(count))
        if known(xp.all(whole)) is False:
            raise ValueError(
                f"{name} goes from {number(xp.min(count)):g} to {number(xp.max(count)):g}; "
                "expected the number of each answer's tokens, a whole number of 1 or more"
            )
        counts.append(xp.astype(count, like.dtype, copy=False))
    return tuple(counts)


def one_number(**points: Any) -> None:
    """Refuse an array of several numbers; it would be broadcast."""
    for name, point in points.items():
        if getattr(point, "ndim", 0) > 0:
            raise ShapeError(
                f"{name} has shape {tuple(point.shape)}; expected one number for all answers"
            )


def above_zero(**numbers: Any) -> None:
    """Refuse a number that is not above 0, or not finite."""
    one_number(**numbers)
    for name, value in numbers.items():
        if known((value > 0) & (value < math.inf)) is False:
            raise ValueError(f"{name} is {value!r}; expected a number above 0, such as 0.1")


def finite(**numbers: Any) -> None:
    """Refuse a number that is not finite."""
    one_number(**numbers)
    for name, value in numbers.items():
        if known((value > -math.inf) & (value < math.inf)) is False:
            raise ValueError(f"{name} is {value!r}; expected a finite number, such as 0.5")


def smoothing(label_smoothing: Any, *, zero: bool = True) -> None:
    """Refuse a share of wrong labels that is not below one half, or 0 where that has no meaning."""
    one_number(label_smoothing=label_smoothing)
    above = label_smoothing >= 0 if zero else label_smoothing > 0
    if known(above & (label_smoothing < 0.5)) is False:
        least = "0 or more" if zero else "above 0"
        raise ValueError(
            f"label_smoothing is {label_smoothing!r}; expected the share of pairs whose label is "
            f"wrong, {least} and below 0.5 (from there on, swap chosen and rejected)"
        )


def unknown_name(kind: str, given: Any, valid: Iterable[str]) -> ValueError:
    """Return the error for a name that isn't among the valid ones, with the nearest of these."""
    names = list(valid)
    near = difflib.get_close_matches(str(given), names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "valid: " + ", ".join(names)
    return ValueError(f"unknown {kind} {given!r}; {hint}")
