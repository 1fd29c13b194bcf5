"""What a run is worth: task and retention, weighted, and compared item by item with its baselines.

The weighted score of an arm is ``w · task + (1 − w) · retention``. It is a line in w, so the task
weights at which one arm is best are an interval with ends where two lines cross.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunemath.errors import ContractError, ShapeError
from tunemath.evaluation.decision import plain_verdict
from tunemath.evaluation.uncertainty import paired_difference, wilson_interval

__all__ = ["Scorecard", "build_scorecard", "winning_range"]

ArmItems = Mapping[str, Sequence[Mapping[str, Any]] | None]
"""The per-item results of one arm: "task" and "retention", each a list of items, or None."""

_CANDIDATE = "tuned"


@dataclass(frozen=True)
class Scorecard:
    """Task and retention scores, and what each is worth.

    ``score`` is ``w_task · task + w_retention · retention``; scores and weights lie in [0, 1] and
    the weights sum to one.

    >>> round(Scorecard(task=0.80, retention=0.72, weights=(0.7, 0.3)).score, 4)
    0.776
    """

    task: float
    retention: float
    weights: tuple[float, float] = (0.7, 0.3)

    def __post_init__(self) -> None:
        for name in ("task", "retention"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ContractError(f"{name} score {value} must be between 0 and 1; give a share")
        if len(self.weights) != 2 or not all(0 <= weight <= 1 for weight in self.weights):
            raise ContractError(
                f"weights {self.weights!r} must be two numbers in [0, 1]: (task, retention)"
            )
        if not math.isclose(sum(self.weights), 1, abs_tol=1e-9):
            raise ContractError(f"weights {self.weights!r} sum to {sum(self.weights):g}; give 1")

    @property
    def score(self) -> float:
        """The weighted score, in [0, 1]."""
        return math.fsum((self.weights[0] * self.task, self.weights[1] * self.retention))


def winning_range(candidate: Scorecard, others: Iterable[Scorecard]) -> tuple[float, float] | None:
    """Return the task weights at which ``candidate`` scores at least as high as every other.

    With Δt and Δr the candidate's leads over another arm in task and retention, its lead at task
    weight w is ``Δr + w (Δt − Δr)``, which is ≥ 0 on one side of ``w₀ = Δr / (Δr − Δt)``. The range
    is the intersection of these half-lines with [0, 1]; None when it is empty.

    >>> winning_range(Scorecard(0.75, 0.50), [Scorecard(0.25, 0.75)])
    (0.3333333333333333, 1.0)
    >>> winning_range(Scorecard(0.2, 0.5), [Scorecard(0.3, 0.6)]) is None
    True
    """
    low, high = 0.0, 1.0
    for other in others:
        task, retention = candidate.task - other.task, candidate.retention - other.retention
        slope = task - retention
        if slope > 0:
            low = max(low, -retention / slope)
        elif slope < 0:
            high = min(high, -retention / slope)
        elif retention < 0:
            return None
    return (low, high) if low <= high else None


def build_scorecard(
    items: Mapping[str, ArmItems],
    weights: tuple[float, float] = (0.7, 0.3),
    margin: float = 0.10,
    movement: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the scorecard of a run, ready to be written as JSON.

    ``items`` maps "base", "prompted" and "tuned" to their per-item results by set; ``movement`` is
    the run's KL record; ``margin`` the share of retention accuracy that may be lost.

    Raises `ShapeError` when two arms were not evaluated on the same items in the same order.
    """
    sets = [name for name in ("task", "retention") if items[_CANDIDATE].get(name)]
    card: dict[str, Any] = {
        "arms": {
            arm: {name: _score(results.get(name)) for name in ("task", "retention")}
            for arm, results in items.items()
        },
        "differences": {
            name: _differences(items, name) if name in sets else None
            for name in ("task", "retention")
        },
        "weights": {"task": weights[0], "retention": weights[1]},
        "weighted": None,
        "winning_range": None,
        "movement": _movement(movement),
        "retention_margin": margin,
    }
    if "retention" in sets:
        cards = {
            arm: Scorecard(scores["task"]["score"], scores["retention"]["score"], weights)
            for arm, scores in card["arms"].items()
        }
        rivals = [scored for arm, scored in cards.items() if arm != _CANDIDATE]
        best = winning_range(cards[_CANDIDATE], rivals)
        card["weighted"] = {arm: scored.score for arm, scored in cards.items()}
        card["winning_range"] = None if best is None else {"low": best[0], "high": best[1]}
    card["sentence"] = plain_verdict(card)
    return card


def _score(results: Sequence[Mapping[str, Any]] | None) -> dict[str, Any] | None:
    """Return one arm's accuracy on one set with its Wilson interval."""
    if not results:
        return None
    correct = sum(item["score"] for item in results)
    interval = wilson_interval(correct, len(results))
    return {
        "score": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "correct": correct,
        "items": len(results),
    }


def _differences(items: Mapping[str, ArmItems], name: str) -> dict[str, Any]:
    """Return the paired differences of the tuned model from each other arm on one set."""
    tuned = items[_CANDIDATE][name] or []
    found = {}
    for arm, results in items.items():
        if arm == _CANDIDATE:
            continue
        other = results.get(name) or []
        if [item["id"] for item in tuned] != [item["id"] for item in other]:
            raise ShapeError(
                f"{name} items of {_CANDIDATE} ({len(tuned)}) and {arm} ({len(other)}) differ; "
                "evaluate both on the same items in the same order"
            )
        scores = [item["score"] for item in tuned], [item["score"] for item in other]
        found[f"{_CANDIDATE} - {arm}"] = asdict(paired_difference(*scores))
    return found


def _movement(movement: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the headline KL of each set, nats per answer token."""
    if not movement:
        return None
    return {
        name: {key: movement[name][key] for key in ("kl", "low", "high")}
        if movement.get(name)
        else None
        for name in ("task", "retention")
    }
