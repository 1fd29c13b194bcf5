"""Which rank suffices: shares by hand, verdicts at the edges of their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from tunemath.errors import ShapeError
from tunemath.evaluation import (
    Difference,
    Interval,
    judge_rank,
    lost_movement,
    needed_rank,
    paired_difference,
)
from tunemath.findings import Status

PASS, FAIL, OPEN = Status.PASS, Status.FAIL, Status.INSUFFICIENT_EVIDENCE


def difference(low: float, high: float) -> Difference:
    return Difference((low + high) / 2, low, high, 1.0, 0, 0)


def test_the_lost_share_is_one_quotient_of_sums():
    found = lost_movement([0.0, 0.1, 0.3], [0.5, 1.5, 2.0])
    assert found.estimate == pytest.approx(0.4 / 4.0)
    # Every resample's quotient lies between the smallest and the largest of an item.
    assert 0.0 <= found.low < 0.1 < found.high <= 0.15


def test_the_interval_is_the_percentile_bootstrap_of_a_plain_loop():
    generator = np.random.default_rng(3)
    moved = generator.uniform(0.5, 2.0, 40)
    cut = moved * generator.uniform(0.0, 0.1, 40)
    draws = np.random.default_rng(11).integers(0, 40, (4000, 40))
    plain = [sum(cut[i] for i in row) / sum(moved[i] for i in row) for row in draws]
    found = lost_movement(cut, moved, resamples=4000, seed=0)
    assert found.low == pytest.approx(np.quantile(plain, 0.025), rel=0.03)
    assert found.high == pytest.approx(np.quantile(plain, 0.975), rel=0.03)


def test_an_item_that_did_not_move_weighs_nothing():
    assert lost_movement([0.1, 0.0], [1.0, 0.0]).estimate == pytest.approx(0.1)


def test_without_movement_there_is_no_share():
    with pytest.raises(ShapeError, match="moves no answer"):
        lost_movement([0.0, 0.0], [0.0, 0.0])


@pytest.mark.parametrize(
    ("lost", "scores", "expected"),
    [
        ((0.01, 0.05), (-0.05, 0.05), PASS),
        ((0.01, 0.051), (-0.05, 0.05), OPEN),
        ((0.01, 0.05), (-0.051, 0.05), OPEN),
        ((0.051, 0.06), (-0.01, 0.01), FAIL),
        ((0.00, 0.01), (-0.20, -0.051), FAIL),
        ((0.01, 0.05), None, PASS),
        ((0.04, 0.06), None, OPEN),
        ((0.06, 0.07), None, FAIL),
    ],
)
def test_a_rank_passes_when_both_intervals_are_within_what_may_be_lost(lost, scores, expected):
    scored = None if scores is None else difference(*scores)
    assert judge_rank(Interval(sum(lost) / 2, *lost), scored, 0.05, 0.05) is expected


def test_equal_answers_suffice_at_a_hundred_items_and_not_at_ten():
    kept = Interval(0.01, 0.005, 0.02)
    for items, expected in ((100, PASS), (10, OPEN)):
        scores = [1.0] * (items - items // 10) + [0.0] * (items // 10)
        assert judge_rank(kept, paired_difference(scores, scores), 0.05, 0.05) is expected


@pytest.mark.parametrize(
    ("judged", "needed"),
    [
        ({0: FAIL, 1: FAIL, 2: PASS, 4: PASS}, 2),
        ({0: FAIL, 1: PASS, 2: FAIL, 4: PASS}, 4),
        ({0: PASS, 1: PASS}, 0),
        ({4: PASS, 0: FAIL, 1: OPEN}, 4),
        ({0: FAIL, 1: OPEN}, None),
    ],
)
def test_the_needed_rank_passes_with_all_above_it(judged, needed):
    assert needed_rank(judged) == needed
