"""Which rank of an update was needed: the smallest that keeps the movement and the score.

Let ΔW_r be an update cut down to its first r singular directions, in every matrix. Of the movement
it loses the share

    ℓ_r = Σ KL(tuned ‖ cut at r) / Σ KL(tuned ‖ base),

over the answer tokens of all items: 0 for the whole update, 1 for the base. Rank r is judged by
two intervals, of ℓ_r over items and of the paired difference of scores, cut less whole:

::

    PASS   ℓ_r's interval ends at most at the share, the difference's begins at least at −margin
    FAIL   ℓ_r's interval begins above the share, or the difference's ends below −margin
    INSUFFICIENT_EVIDENCE   in between: on these items it can't be told
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tunemath.errors import ShapeError
from tunemath.evaluation.uncertainty import Difference, Interval, bootstrap_ratio
from tunemath.findings import Status

__all__ = ["STILL", "judge_rank", "lost_movement", "needed_rank"]

STILL = 1e-6
"""KL(tuned ‖ base) in nats per token up to which nothing has moved, so that no share is lost."""


def lost_movement(
    cut: Sequence[float] | np.ndarray,
    moved: Sequence[float] | np.ndarray,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return the share of the movement that a cut loses, with its interval over items.

    ``cut`` (n,) is KL(tuned ‖ cut) in nats, summed over an item's answer tokens; ``moved`` (n,)
    KL(tuned ‖ base), the same. Returns ``Σ cut / Σ moved`` and the ends of its bootstrap interval.

    >>> lost_movement([0.25, 0.5], [1.0, 2.0])
    Interval(estimate=0.25, low=0.25, high=0.25)
    """
    weights = np.asarray(moved, dtype=np.float64)
    if not weights.size or not weights.sum() > 0:
        raise ShapeError("the update moves no answer, so there is no movement to lose")
    # An item that didn't move weighs nothing; the ratio needs a weight that is positive.
    weights = np.maximum(weights, 1e-12 * weights.sum())
    return bootstrap_ratio(cut, weights, resamples=resamples, seed=seed)


def judge_rank(
    lost: Interval, difference: Difference | None, share: float, margin: float
) -> Status:
    """Return whether a rank keeps movement and score; without scores the movement decides.

    ``lost`` is the share of the movement that is lost, of which ``share`` may be; ``difference``
    the score of the cut model less the whole's on the same items, of which ``margin`` may be lost.

    >>> same = Difference(0.0, -0.017, 0.017, 1.0, 0, 0)
    >>> judge_rank(Interval(0.01, 0.008, 0.013), same, share=0.05, margin=0.05).value
    'PASS'
    >>> wide = Difference(-0.05, -0.21, 0.12, 1.0, 1, 2)
    >>> judge_rank(Interval(0.01, 0.008, 0.013), wide, share=0.05, margin=0.05).value
    'INSUFFICIENT_EVIDENCE'
    """
    if lost.low > share or (difference is not None and difference.high < -margin):
        return Status.FAIL
    kept = difference is None or difference.low >= -margin
    return Status.PASS if kept and lost.high <= share else Status.INSUFFICIENT_EVIDENCE


def needed_rank(judged: Mapping[int, Status]) -> int | None:
    """Return the smallest rank that passes with every larger one that was measured; else None.

    >>> needed_rank({0: Status.FAIL, 1: Status.INSUFFICIENT_EVIDENCE, 2: Status.PASS})
    2
    """
    needed = None
    for rank in sorted(judged, reverse=True):
        if judged[rank] is not Status.PASS:
            break
        needed = rank
    return needed
