"""Choice 5, the evaluation contract: scores, their uncertainty, and what they decide."""

from __future__ import annotations

from tunemath.evaluation.decision import judge_gain, judge_retention
from tunemath.evaluation.metrics import choice_prediction, exact_match, items_sha256
from tunemath.evaluation.ranks import STILL, judge_rank, lost_movement, needed_rank
from tunemath.evaluation.record import Evaluation, Weights
from tunemath.evaluation.scorecard import Scorecard, build_scorecard, winning_range
from tunemath.evaluation.sizes import (
    FEWEST_ITEMS,
    can_show_gain,
    can_show_retention,
    smallest_kept_margin,
)
from tunemath.evaluation.uncertainty import (
    Difference,
    Interval,
    bootstrap_ratio,
    mcnemar_exact,
    paired_difference,
    wilson_interval,
)

__all__ = [
    "FEWEST_ITEMS",
    "STILL",
    "Difference",
    "Evaluation",
    "Interval",
    "Scorecard",
    "Weights",
    "bootstrap_ratio",
    "build_scorecard",
    "can_show_gain",
    "can_show_retention",
    "choice_prediction",
    "exact_match",
    "items_sha256",
    "judge_gain",
    "judge_rank",
    "judge_retention",
    "lost_movement",
    "mcnemar_exact",
    "needed_rank",
    "paired_difference",
    "smallest_kept_margin",
    "wilson_interval",
    "winning_range",
]
