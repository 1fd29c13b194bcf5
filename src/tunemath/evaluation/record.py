"""Choice 5, the evaluation contract: what would change our mind."""

from __future__ import annotations

from pydantic import Field, model_validator

from tunemath.record import Record, UserPath

__all__ = ["Evaluation", "Weights"]


class Weights(Record):
    """What the task and retention are worth in the weighted score; they sum to one."""

    task: float = Field(default=0.7, ge=0, le=1)
    """Weight of the task score."""
    retention: float = Field(default=0.3, ge=0, le=1)
    """Weight of the retention score."""

    @model_validator(mode="after")
    def _sum_to_one(self) -> Weights:
        if abs(self.task + self.retention - 1) > 1e-9:
            raise ValueError(f"task + retention is {self.task + self.retention:g}; it must be 1")
        return self


class Evaluation(Record):
    """The items that decide, the baselines they are compared with, and the retention margin."""

    task: UserPath
    """JSONL of held-out items: a prompt and `answer`, or `choices` and `answer`; for dpo pairs."""
    retention: UserPath | None = None
    """JSONL of items of general ability. Without it retention is not measured, and that is said."""
    few_shot: int = Field(default=4, ge=0, le=10_000)
    """Training examples in the prompt of the prompt-only baseline."""
    max_new_tokens: int = Field(default=32, ge=1, le=1_000_000)
    """Longest generated answer, in tokens."""
    batch_size: int = Field(default=25, ge=1, le=1_000_000)
    """Items evaluated at once; the scores do not depend on it."""
    retention_margin: float = Field(default=0.10, gt=0, lt=1)
    """How much retention accuracy may be lost (0.10 is ten points)."""
    weights: Weights = Weights()
    """What task and retention are worth in the weighted score."""
    bootstraps: int = Field(default=10_000, ge=100, le=1_000_000)
    """Resamples of rows behind each KL interval."""
