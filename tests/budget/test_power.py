from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tunemath.budget import smallest_detectable_difference
from tunemath.errors import ShapeError


def simulated_power(items, difference, discordance, alpha=0.05, runs=40_000):
    """Return the share of simulated comparisons in which McNemar's test is significant."""
    rng = np.random.default_rng(0)
    share = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    wins, losses, _ = rng.multinomial(items, share, size=runs).T
    statistic = (wins - losses) / np.sqrt(np.maximum(wins + losses, 1))
    return np.mean(np.abs(statistic) > scipy.stats.norm.isf(alpha / 2))


@pytest.mark.parametrize("items", [150, 300, 1000])
@pytest.mark.parametrize("discordance", [0.2, 0.5])
@pytest.mark.parametrize("power", [0.8, 0.9])
def test_the_difference_is_found_with_the_given_power(items, discordance, power):
    difference = smallest_detectable_difference(items, 0.05, power, discordance)
    assert difference < discordance
    assert simulated_power(items, difference, discordance) == pytest.approx(power, abs=0.03)


def test_where_every_discordant_item_must_be_a_win():
    difference = smallest_detectable_difference(25, discordance=0.01)
    assert difference > 0.01
    assert simulated_power(25, difference, difference) > 0.8


shares = st.floats(0.05, 1.0)


@given(st.integers(6, 5000), st.floats(0.001, 0.2), st.floats(0.5, 0.99), shares)
def test_the_answer_solves_connors_equation(items, alpha, power, discordance):
    if items < scipy.stats.norm.isf(alpha / 2) ** 2:
        return
    d = smallest_detectable_difference(items, alpha, power, discordance)
    psi = max(d, discordance)
    a, b = scipy.stats.norm.isf(alpha / 2), scipy.stats.norm.ppf(power)
    needed = (a * math.sqrt(psi) + b * math.sqrt(psi - d * d)) ** 2 / d**2
    assert 0 < d <= 1
    assert needed == pytest.approx(items, rel=1e-6)


@given(st.integers(10, 5000), shares)
def test_more_items_and_less_discordance_find_more(items, discordance):
    d = smallest_detectable_difference(items, discordance=discordance)
    assert smallest_detectable_difference(items + 1, discordance=discordance) < d
    assert smallest_detectable_difference(items, discordance=discordance / 2) <= d + 1e-12


def test_bad_input():
    with pytest.raises(ValueError, match=r"3 items can't show any difference.*give 4 or more"):
        smallest_detectable_difference(3)
    with pytest.raises(ShapeError, match="items is 0"):
        smallest_detectable_difference(0)
    with pytest.raises(ValueError, match="power is 1"):
        smallest_detectable_difference(100, power=1)


@pytest.mark.parametrize(
    "shares",
    [{"alpha": 0.0}, {"alpha": 1.0}, {"power": 0.0}, {"power": 1.0}, {"discordance": 0.0},
     {"discordance": 1.0001}, {"power": math.nan}],
)  # fmt: skip
def test_a_share_lies_between_its_ends(shares):
    (name,) = shares
    with pytest.raises(ValueError, match=f"{name} is .*expected a number between 0 and 1"):
        smallest_detectable_difference(100, **shares)


def test_the_fewest_items_and_the_most_discordance_are_allowed():
    # (z of 0.975)² = 3.84, so 4 items can, if all of them are wins
    assert 0.9 < smallest_detectable_difference(4) < 1
    assert smallest_detectable_difference(100, discordance=1.0) < 1
