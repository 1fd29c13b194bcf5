"""Choice 1, the update space: what may change."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunemath.record import Record

__all__ = ["UpdateSpace"]


class UpdateSpace(Record):
    """What may change: LoRA, ``W + s·B A`` with ``A (r, d_in)``, ``B (d_out, r)``, ``s = α/r``."""

    method: Literal["lora"] = "lora"
    """How weights may change. `lora`: a low-rank update of each target."""
    rank: int = Field(default=8, ge=1)
    """r, the rank of each update."""
    alpha: float = Field(default=16.0, gt=0)
    """α; the update is scaled by α/r, or by α/√r with `rslora`."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Which linear layers: `all-linear` (all but the head), or names such as [q_proj, v_proj]."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of A during training."""
    rslora: bool = False
    """Scale by α/√r instead of α/r."""

    @property
    def scale(self) -> float:
        """The factor s in ``ΔW = s·B A``."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)
