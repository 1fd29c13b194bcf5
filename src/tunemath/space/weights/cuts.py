"""What an adapter holds of a change: each matrix that was cut, what else there is, and the sums."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Cut", "Extraction", "Left"]


@dataclass(frozen=True)
class Cut:
    """What became of one matrix's change."""

    name: str
    """The module."""
    shape: tuple[int, int]
    """(d_out, d_in)."""
    rank: int
    norm: float
    """‖ΔW‖_F, of the change that was cut."""
    relative_error: float
    """‖ΔW − s·B A‖_F / ‖ΔW‖_F before the factors were rounded to their dtype."""
    bound: float
    """What the relative error certainly does not exceed."""
    survived: float
    """⟨m, s·B A⟩ / ‖s·B A‖² for the product m of the rounded factors: 1 where nothing was lost."""
    rounding: float
    """‖m − s·B A‖ / ‖s·B A‖."""


@dataclass(frozen=True)
class Left:
    """A changed tensor that is no matrix of the adapter."""

    name: str
    norm: float
    """The norm of its change."""
    held: bool
    """Whether the adapter has it whole, as a saved module or a bias."""
    why: str
    """What it is."""


@dataclass
class Extraction:
    """What an adapter holds of the change between two checkpoints."""

    cuts: list[Cut] = field(default_factory=list)
    rest: list[Left] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    parameters: int = 0
    """The elements of all factors."""

    @property
    def relative_error(self) -> float:
        """Return ‖ΔW − ΔW_held‖ / ‖ΔW‖ over all matrices that were cut."""
        total = sum(cut.norm**2 for cut in self.cuts)
        lost = sum((cut.norm * cut.relative_error) ** 2 for cut in self.cuts)
        return math.sqrt(lost / total) if total else 0.0

    @property
    def survived(self) -> float:
        """Return the share of the truncated change that rounding to the dtype left."""
        weights = [cut.norm**2 * (1 - cut.relative_error**2) for cut in self.cuts]
        whole = sum(weights)
        kept = sum(w * cut.survived for w, cut in zip(weights, self.cuts, strict=True))
        return kept / whole if whole else 1.0

    @property
    def rounding(self) -> float:
        """Return ‖m − ΔW_r‖ / ‖ΔW_r‖ for the product m of the rounded factors, over all."""
        weights = [cut.norm**2 * (1 - cut.relative_error**2) for cut in self.cuts]
        pairs = zip(weights, self.cuts, strict=True)
        lost = sum(weight * cut.rounding**2 for weight, cut in pairs)
        return math.sqrt(lost / sum(weights)) if sum(weights) else 0.0

    @property
    def not_held(self) -> float:
        """Return the share of the squared change that no part of the adapter can hold."""
        total = sum(cut.norm**2 for cut in self.cuts) + sum(each.norm**2 for each in self.rest)
        lost = sum(each.norm**2 for each in self.rest if not each.held)
        return lost / total if total else 0.0

    def summary(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "relative_error": self.relative_error,
            "survived": self.survived,
            "rounding": self.rounding,
            "not_held": self.not_held,
            "parameters": self.parameters,
            "modules": [asdict(cut) for cut in self.cuts],
            "rest": [asdict(each) for each in self.rest],
            "notes": self.notes,
        }
