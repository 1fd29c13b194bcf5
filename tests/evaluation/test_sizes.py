"""How many items can show anything: held against every result that is possible."""

from __future__ import annotations

import math

import pytest
from scipy.stats import norm

from tunemath.evaluation import (
    FEWEST_ITEMS,
    can_show_gain,
    can_show_retention,
    paired_difference,
    smallest_kept_margin,
)

scipy_stats = pytest.importorskip("scipy.stats")


def scores(both: int, wins: int, losses: int, neither: int) -> tuple[list[int], list[int]]:
    ours = [1] * both + [1] * wins + [0] * losses + [0] * neither
    theirs = [1] * both + [0] * wins + [1] * losses + [0] * neither
    return ours, theirs


def tables(items: int):
    """Every way in which two models can answer so many items."""
    for both in range(items + 1):
        for wins in range(items + 1 - both):
            for losses in range(items + 1 - both - wins):
                yield both, wins, losses, items - both - wins - losses


@pytest.mark.parametrize("items", range(1, 10))
def test_a_gain_can_be_shown_where_scipy_finds_any_result_that_shows_it(items):
    found = any(
        wins > losses and scipy_stats.binomtest(wins, wins + losses, 0.5).pvalue < 0.05
        for _, wins, losses, _ in tables(items)
    )
    assert can_show_gain(items) is found
    assert (items >= FEWEST_ITEMS) is found


@pytest.mark.parametrize("margin", [0.02, 0.10, 0.15, 0.4])
@pytest.mark.parametrize("items", range(1, 8))
def test_retention_can_be_shown_where_any_result_passes(items, margin):
    found = any(paired_difference(*scores(*table)).low > -margin for table in tables(items))
    assert can_show_retention(items, margin) is found


@pytest.mark.parametrize("items", [1, 2, 3, 4, 17, 18, 19, 40, 41, 300])
def test_the_smallest_margin_is_the_best_interval_of_no_change(items):
    best = max(
        paired_difference(*scores(right, 0, 0, items - right)).low for right in range(items + 1)
    )
    assert math.isclose(smallest_kept_margin(items), -best, rel_tol=1e-9)


@pytest.mark.parametrize("items", [2, 18, 300])
def test_an_even_count_has_the_limit_in_closed_form(items):
    z = norm.ppf(0.975)
    assert math.isclose(smallest_kept_margin(items), z / math.sqrt(items * (items + z * z)))
