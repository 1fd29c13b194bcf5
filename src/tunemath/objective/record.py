"""Choice 2, the objective: what is minimised."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tunemath.record import Record

__all__ = ["Objective"]


class Objective(Record):
    """What is minimised: answer-only cross-entropy (`sft`) or preference loss (`dpo`)."""

    kind: Literal["sft", "dpo"] = "sft"
    """`sft`: mean cross-entropy over supervised tokens of the batch. `dpo`: mean over pairs."""
    beta: float | None = Field(default=None, gt=0, le=1e6)
    """DPO's β, the weight of the distance from the base (0.1 when not given)."""

    @model_validator(mode="after")
    def _beta_belongs_to_dpo(self) -> Objective:
        if self.kind == "sft" and self.beta is not None:
            raise ValueError("beta has no meaning for kind: sft; remove it, or write kind: dpo")
        if self.kind == "dpo" and self.beta is None:
            object.__setattr__(self, "beta", 0.1)
        return self
