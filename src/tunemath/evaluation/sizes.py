"""How many items an evaluation needs before any result on them can pass."""

from __future__ import annotations

from tunemath.evaluation.decision import ALPHA, judge_retention
from tunemath.evaluation.uncertainty import mcnemar_exact, paired_difference

__all__ = ["FEWEST_ITEMS", "can_show_gain", "can_show_retention", "smallest_kept_margin"]


def can_show_gain(items: int) -> bool:
    """Return whether any result on so many paired items can show a gain.

    The best result, every item won, has exact McNemar p = 2 / 2ⁿ.

    >>> can_show_gain(5), can_show_gain(6)
    (False, True)
    """
    return mcnemar_exact(items, 0) < ALPHA


FEWEST_ITEMS = next(n for n in range(1, 64) if can_show_gain(n))
"""The fewest paired items on which a difference can be shown."""


def can_show_retention(items: int, margin: float) -> bool:
    """Return whether any result on so many items can show that no more than ``margin`` was lost.

    The best result is that every item is won from the base.

    >>> can_show_retention(1, 0.10), can_show_retention(2, 0.10)
    (False, True)
    """
    best = paired_difference([1] * items, [0] * items)
    return judge_retention({"low": best.low, "high": best.high}, margin).value == "PASS"


def smallest_kept_margin(items: int) -> float:
    """Return how far below zero the interval reaches when a model answers as its base does.

    That is Newcombe's interval on items that both models answer alike, half of them rightly: the
    narrowest case; for even n its limit is −z / √(n (n + z²)), z the normal quantile of 97.5 %.
    A retention margin that is not larger can't be shown to be kept by a model that changed nothing;
    where the base answers nearly all or nothing rightly, more items are needed.

    >>> round(smallest_kept_margin(18), 4), round(smallest_kept_margin(300), 4)
    (0.0988, 0.0065)

    Source: Newcombe 1998, Stat Med 17:2635, method 10, with no discordant item.
    """
    alike = [1] * (items // 2) + [0] * (items - items // 2)
    return -paired_difference(alike, alike).low
