"""Choice 3, the data mask: which tokens count."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunemath.record import Record, UserPath

__all__ = ["DataMask"]


class DataMask(Record):
    """Which tokens count: the answers of the training rows and their end-of-turn token."""

    train: UserPath
    """JSONL: rows of `messages`, or `prompt` and `completion`; for dpo `chosen` and `rejected`."""
    answers: Literal["all", "last"] = "all"
    """Which assistant turns of a conversation are trained on."""
    max_length: int = Field(default=512, ge=2, le=10_000_000)
    """The longest row, in tokens."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """What to do with a longer row. Rows are never cut: a cut answer teaches not to stop."""
