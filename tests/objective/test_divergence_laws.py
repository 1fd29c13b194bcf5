from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from tunemath.objective.divergence import (
    alpha_divergence,
    js_divergence,
    kl_divergence,
    renyi_divergence,
    skewed_kl,
    total_variation,
)

DIVERGENCES = (
    kl_divergence,
    partial(skewed_kl, skew=0.1),
    partial(js_divergence, weight=0.125),
    partial(alpha_divergence, alpha=-1),
    partial(alpha_divergence, alpha=0.75),
    partial(renyi_divergence, alpha=0.5),
    partial(renyi_divergence, alpha=3),
    partial(renyi_divergence, alpha=math.inf),
    total_variation,
)

# Zeros, and nothing so small that its powers overflow.
weights = st.floats(0, 1).map(lambda weight: weight if weight > 1e-30 else 0.0)


def rows(size):
    return st.lists(weights, min_size=size, max_size=size).filter(lambda w: sum(w) > 1e-3)


@st.composite
def pairs(draw):
    size = draw(st.integers(2, 8))
    return tuple(np.array(w) / np.sum(w) for w in (draw(rows(size)), draw(rows(size))))


orders = st.floats(0.01, 20)


@given(pairs())
def test_never_negative_and_zero_for_equals(pair):
    p, q = pair
    for ours in DIVERGENCES:
        assert ours(p, q) >= 0
        assert ours(p, p) == 0
        assert ours(p, p[::-1]) >= 0


@given(pairs())
def test_symmetry_and_bounds(pair):
    p, q = pair
    assert js_divergence(p, q) == pytest.approx(js_divergence(q, p), rel=1e-9, abs=1e-300)
    assert js_divergence(p, q) <= math.log(2) * (1 + 1e-15)
    assert total_variation(p, q) == total_variation(q, p)
    assert total_variation(p, q) <= 1 + 1e-15
    assert skewed_kl(p, q, skew=0.1) <= math.log(10) * (1 + 1e-15)
    assert 2 * total_variation(p, q) ** 2 <= kl_divergence(p, q) * (1 + 1e-9)  # Pinsker


@given(pairs(), st.floats(1e-3, 0.999))
def test_js_with_any_weight(pair, weight):
    p, q = pair
    value = js_divergence(p, q, weight=weight)
    assert value == pytest.approx(js_divergence(q, p, weight=1 - weight), rel=1e-6, abs=1e-300)
    assert value <= scipy.special.entr([weight, 1 - weight]).sum() * (1 + 1e-15)


@given(pairs(), st.integers(-40, 40).map(lambda eighths: eighths / 8))
def test_swapping_the_arguments_of_alpha(pair, alpha):
    p, q = pair
    value = alpha_divergence(p, q, alpha)
    assert value == pytest.approx(alpha_divergence(q, p, 1 - alpha), rel=1e-6, abs=1e-300)


@given(pairs(), orders, orders)
def test_renyi_never_falls_with_its_order(pair, first, second):
    p, q = pair
    low, high = sorted((first, second))
    values = [renyi_divergence(p, q, alpha) for alpha in (low, high, math.inf)]
    assert values[0] <= values[1] * (1 + 1e-9) + 1e-15
    assert values[1] <= values[2] * (1 + 1e-9) + 1e-15


@given(pairs())
def test_merging_two_outcomes_never_increases(pair):
    p, q = pair
    merged = [np.append(row[2:], row[0] + row[1]) for row in (p, q)]
    for ours in DIVERGENCES:
        assert ours(*merged) <= ours(p, q) * (1 + 1e-9) + 1e-15


@given(pairs(), st.randoms())
def test_the_order_of_outcomes_does_not_matter(pair, random):
    p, q = pair
    order = random.sample(range(len(p)), len(p))
    for ours in DIVERGENCES:
        assert ours(p[order], q[order]) == pytest.approx(ours(p, q), rel=1e-9, abs=1e-300)
