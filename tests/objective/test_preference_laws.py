"""What each loss promises: where it is least, where it is flat, what leaves it as it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunemath.objective import pooled_mean
from tunemath.objective.preference import (
    PAIR_LOSSES,
    alphapo_loss,
    aot_loss,
    aot_unpaired_loss,
    apo_down_loss,
    apo_zero_loss,
    bco_pair_loss,
    chosen_nll,
    cpo_loss,
    discopop_loss,
    dpo_loss,
    exo_pair_loss,
    hinge_loss,
    ipo_loss,
    nca_pair_loss,
    odds_ratio_loss,
    pair_loss,
    robust_loss,
    simpo_loss,
    sppo_hard_loss,
)

OF_THE_MARGIN = ("sigmoid", "hinge", "ipo", "exo_pair", "robust", "discopop", "sigmoid_norm")
WITH_REFERENCE = tuple(PAIR_LOSSES)[:13]
LENGTHS = {"chosen_length": [4], "rejected_length": [4]}

numbers = st.floats(-50, 50)
betas = st.floats(0.01, 2)
shares = st.floats(0.01, 0.49)


def of_margin(loss, m, **options):
    """Return the loss of a pair whose rejected answer has not moved."""
    return float(loss(m, 0.0, 0.0, 0.0, **options))


def slope(loss, *arrays, **options):
    leaf = torch.tensor(float(arrays[0]), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(leaf, *arrays[1:], **options), leaf)
    return gradient.item()


@given(numbers, numbers, numbers)
@pytest.mark.parametrize("name", OF_THE_MARGIN)
def test_what_moves_both_answers_alike_leaves_a_loss_of_the_margin(name, c, r, shift):
    options = LENGTHS if name == "sigmoid_norm" else {}
    before = pair_loss(name, [c], [r], [0.0], [0.0], **options)[0]
    after = pair_loss(name, [c + shift], [r + shift], [0.0], [0.0], **options)[0]
    assert after == pytest.approx(before, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", ["nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down"])
def test_but_not_a_loss_that_is_anchored(name):
    before = pair_loss(name, 3.0, -2.0, 0.0, 0.0)
    assert abs(pair_loss(name, -7.0, -12.0, 0.0, 0.0) - before) > 0.01


@given(numbers, numbers, numbers, numbers, numbers)
@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_only_the_log_ratios_count(name, pc, pr, rc, rr, shift):
    if name == "aot":
        return  # compares policy with policy and reference with reference
    before = pair_loss(name, [pc], [pr], [rc], [rr])[0]
    after = pair_loss(name, [pc + shift], [pr], [rc + shift], [rr])[0]
    assert after == pytest.approx(before, rel=1e-9, abs=1e-9)


def test_the_values_while_policy_and_reference_are_one():
    same = [-3.0, -8.0, -3.0, -8.0]
    log_two = math.log(2)
    expected = {
        dpo_loss: log_two,
        robust_loss: log_two,
        hinge_loss: 1.0,
        ipo_loss: 25.0,
        nca_pair_loss: 2 * log_two,
        bco_pair_loss: 2 * log_two,
        sppo_hard_loss: 50.0,
        apo_zero_loss: 1.0,
        apo_down_loss: 1.0,
        discopop_loss: 0.5 * log_two + 0.5,
    }
    for loss, at_zero in expected.items():
        assert loss(*same) == pytest.approx(at_zero, rel=1e-14)


@given(betas, numbers)
def test_ipo_is_least_at_its_target_summed_and_per_token(beta, step):
    target = 1 / (2 * beta)
    assert of_margin(ipo_loss, target, beta=beta) == pytest.approx(0, abs=1e-20)
    assert of_margin(ipo_loss, target + step, beta=beta) == pytest.approx(step**2, abs=1e-9)
    per_token = ipo_loss([7 * target], [0.0], [0.0], [0.0], beta, **_lengths(7, 3))
    assert per_token[0] == pytest.approx(0, abs=1e-20)
    moved = ipo_loss([7 * target], [-3 * step], [0.0], [0.0], beta, **_lengths(7, 3))
    assert moved[0] == pytest.approx(step**2, abs=1e-9)


def _lengths(chosen, rejected):
    return {"chosen_length": [chosen], "rejected_length": [rejected]}


def test_the_hinge_is_flat_from_one_over_beta_on():
    for m in (10.0, 10.5, 1e6):
        assert of_margin(hinge_loss, m, beta=0.1) == 0
        assert slope(hinge_loss, m, 0.0, 0.0, 0.0, beta=0.1) == 0
    assert slope(hinge_loss, 9.99, 0.0, 0.0, 0.0, beta=0.1) == -0.1
    assert math.isnan(of_margin(hinge_loss, math.nan))


@given(numbers, betas, shares)
def test_robust_is_unbiased_under_flipped_labels(m, beta, share):
    options = {"beta": beta, "label_smoothing": share}
    kept = of_margin(robust_loss, m, **options)
    flipped = of_margin(robust_loss, -m, **options)
    clean = of_margin(dpo_loss, m, beta=beta)
    assert (1 - share) * kept + share * flipped == pytest.approx(clean, rel=1e-8, abs=1e-8)


@given(betas, shares)
def test_smoothed_losses_are_least_where_the_policy_is_as_sure_as_the_label(beta, share):
    best = math.log((1 - share) / share) / beta
    for loss in (dpo_loss, exo_pair_loss):
        gradient = slope(loss, best, 0.0, 0.0, 0.0, beta=beta, label_smoothing=share)
        assert gradient == pytest.approx(0, abs=1e-12)
    least = of_margin(exo_pair_loss, best, beta=beta, label_smoothing=share)
    assert least == pytest.approx(0, abs=1e-14)
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    least = of_margin(dpo_loss, best, beta=beta, label_smoothing=share)
    assert least == pytest.approx(entropy, rel=1e-12)


@given(numbers, shares)
def test_exo_is_bounded_and_never_negative(m, share):
    loss = of_margin(exo_pair_loss, m, beta=1.0, label_smoothing=share)
    assert -1e-15 <= loss <= -math.log(share) + 1e-12


@given(numbers, numbers)
def test_bco_bounds_dpo_from_above(c, r):
    assert bco_pair_loss(c, r, 0.0, 0.0) >= dpo_loss(c, r, 0.0, 0.0) - 1e-12


def test_which_way_each_anchored_loss_pushes_the_chosen_answer():
    start = [0.0, 0.0, 0.0, 0.0]
    assert slope(apo_zero_loss, *start) == pytest.approx(-0.025)
    # σ′(0) β from the first term, less the same from the second: the answers part, no more.
    assert slope(apo_down_loss, *start) == 0
    assert slope(apo_down_loss, 3.0, -100.0, 0.0, 0.0) > 0
    assert slope(nca_pair_loss, *start) == pytest.approx(-0.025)


def test_sppo_is_zero_at_a_sure_win_and_a_sure_loss():
    assert sppo_hard_loss(5.0, -5.0, 0.0, 0.0, beta=0.1) == 0
    assert sppo_hard_loss(6.0, -3.0, 0.0, 0.0, beta=0.1) == pytest.approx(1 + 4)


def test_discopop_far_out_is_dpo_on_one_side_and_exponential_on_the_other():
    for x in (-1e6, -800.0, -5.0):
        assert of_margin(discopop_loss, x, beta=1.0) == pytest.approx(-x, rel=1e-2)
        assert slope(discopop_loss, x, 0.0, 0.0, 0.0, beta=1.0) == pytest.approx(-1, rel=1e-2)
    for x in (2.0, 30.0):
        assert of_margin(discopop_loss, x, beta=1.0) == pytest.approx(math.exp(-x), rel=1e-9)
    with np.errstate(over="ignore"):
        assert of_margin(discopop_loss, -1e4, beta=1.0, temperature=2.0) == math.inf
    with pytest.raises(ValueError, match="temperature is 0; expected a number above 0"):
        discopop_loss(0.0, 0.0, 0.0, 0.0, temperature=0)


@given(st.permutations(range(5)), st.permutations(range(5)))
def test_optimal_transport_forgets_who_belongs_to_whom(one, other):
    rows = np.random.default_rng(0).normal(size=(4, 5)) * 5
    pc, pr, rc, rr = rows
    i, j = list(one), list(other)
    np.testing.assert_allclose(aot_loss(*rows), aot_loss(pc[i], pr[i], rc[j], rr[j]))
    np.testing.assert_allclose(
        aot_unpaired_loss(*rows), aot_unpaired_loss(pc[i], pr[j], rc[i], rr[j])
    )


@given(numbers, numbers, numbers, numbers, st.floats(0, 0.49))
def test_one_pair_is_transported_as_dpo(a, b, c, d, share):
    single = [[a], [b], [c], [d]]
    expected = dpo_loss(a, b, c, d, label_smoothing=share)
    for loss in (aot_loss, aot_unpaired_loss):
        got = loss(*single, label_smoothing=share)[0]
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(numbers, numbers, betas)
def test_cpo_is_dpo_under_a_uniform_reference(c, r, beta):
    assert cpo_loss(c, r, beta) == dpo_loss(c, r, 0.0, 0.0, beta)


def test_simpo_is_the_limit_of_alphapo_and_does_not_see_the_length():
    answers = [[-30.0, -8.0], [-45.0, -3.0], [10, 4], [9, 2]]
    near = alphapo_loss(*answers, alpha=1e-9)
    np.testing.assert_allclose(near, simpo_loss(*answers), rtol=1e-6)
    doubled = [[2 * x for x in row] for row in answers]
    np.testing.assert_allclose(simpo_loss(*doubled), simpo_loss(*answers), rtol=1e-14)
    # At the target margin, β Δ = γ, the loss is log 2.
    assert simpo_loss(-4.0, -6.0, 4, 4, 3.0, gamma=1.5) == pytest.approx(math.log(2))


def test_the_odds_ratio_by_hand_and_near_probability_one():
    # Probabilities 2/3 and 1/2 have odds 2 and 1: log(1 + 1/2).
    loss = odds_ratio_loss(math.log(2 / 3), math.log(1 / 2), 1, 1)
    assert loss == pytest.approx(math.log(1.5), rel=1e-14)
    # p = 1 − δ has odds 1/δ up to a part in δ: the ratio of two such is δ_r / δ_c.
    loss = odds_ratio_loss(-1e-12, -1e-9, 1, 1)
    assert loss == pytest.approx(1e-3, rel=1e-3)
    with np.errstate(divide="ignore"):
        assert odds_ratio_loss(0.0, -1.0, 1, 1) == 0
        assert odds_ratio_loss(-1.0, 0.0, 1, 1) == math.inf


@pytest.mark.parametrize("u", [-1e-9, -1e-3, -0.7, -40.0, -800.0])
def test_the_odds_ratios_gradient_near_probability_one_and_far(u):
    # d log odds / du = 1 / (1 − e^u), and the loss is log(1 + odds_r / odds_c).
    share = 1 / (1 + math.exp(u) / -math.expm1(u))
    expected = -share / -math.expm1(u)
    assert slope(odds_ratio_loss, u, math.log(0.5), 1, 1) == pytest.approx(expected, rel=1e-9)


def test_sft_on_chosen_answers_pools_tokens():
    nll, tokens = chosen_nll([-4.0, -6.0]), [1, 9]
    parts = [(loss, count) for loss, count in zip(nll, tokens, strict=True)]
    assert pooled_mean(parts) == pytest.approx(1.0)
