"""Choice 4, the optimizer budget: what it costs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tunemath.record import Record

__all__ = ["Budget"]


class Budget(Record):
    """What is spent: passes over the data, rows a step, and AdamW's settings."""

    epochs: int = Field(default=2, ge=1, le=10_000)
    """Passes over the training rows."""
    batch_size: int = Field(default=16, ge=1, le=1_000_000)
    """Rows (or pairs) in one optimizer step."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=1_000_000)
    """Rows in memory at once, `batch_size` when not given; the loss does not depend on it."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more operations, same update."""
    learning_rate: float = Field(default=2e-4, gt=0, le=100)
    """The peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls from its peak to zero after the warm-up (`constant`: it does not)."""
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the rate rises linearly from zero."""
    weight_decay: float = Field(default=0.0, ge=0, le=100)
    """AdamW's decoupled decay. On LoRA it pulls the model back to the base."""
    max_grad_norm: float = Field(default=1.0, gt=0, le=1e12)
    """Gradients are scaled down to this norm when theirs is larger."""
    save_every: int | None = Field(default=None, ge=1, le=10_000_000)
    """Optimizer steps between checkpoints; a fifth of the run when not given."""

    @model_validator(mode="after")
    def _micro_divides_batch(self) -> Budget:
        if self.micro_batch_size is None:
            object.__setattr__(self, "micro_batch_size", self.batch_size)
        elif self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide "
                f"batch_size {self.batch_size}; choose a divisor"
            )
        return self

    @property
    def accumulation(self) -> int:
        """Micro-batches in one optimizer step."""
        return self.batch_size // (self.micro_batch_size or self.batch_size)
