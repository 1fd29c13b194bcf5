"""Every loss of a pair: its plain loop, its gradient, any library, far margins, bad input."""

from __future__ import annotations

import inspect
import math
from math import exp, log

import jax
import numpy as np
import pytest
import torch
from libraries import LIBRARIES, same

from tunemath.errors import ShapeError
from tunemath.objective.preference import PAIR_LOSSES, pair_loss

RNG = np.random.default_rng(0)
PAIRS = 5
DATA = {
    "policy_chosen": RNG.normal(size=PAIRS) * 6 - 30,
    "policy_rejected": RNG.normal(size=PAIRS) * 6 - 30,
    "reference_chosen": RNG.normal(size=PAIRS) * 6 - 30,
    "reference_rejected": RNG.normal(size=PAIRS) * 6 - 30,
    "chosen_length": np.array([3, 9, 8, 30, 12]),
    "rejected_length": np.array([7, 4, 5, 30, 6]),
}
LOG_PROBS, LENGTHS = list(DATA)[:4], list(DATA)[4:]


def s(x):
    return 1 / (1 + exp(-x))


def cdpo(x, e):
    return -(1 - e) * log(s(x)) - e * log(s(-x))


def log_odds(u):
    return log(exp(u) / (1 - exp(u)))


def disco(x, t):
    return (1 - s(x / t)) * -log(s(x)) + s(x / t) * exp(-x)


def reward(u, a):
    return (1 - exp(u) ** -a) / a


def robust(x, e):
    return ((1 - e) * -log(s(x)) + e * log(s(-x))) / (1 - 2 * e)


def exo(x, e):
    return s(x) * (log(s(x)) - log(1 - e)) + s(-x) * (log(s(-x)) - log(e))


# Of p: pc, pr, rc, rr log-probabilities, c and r log-ratios, m margin, nc and nr lengths.
CASES = {
    "sigmoid": ({"beta": 0.3}, lambda p: -log(s(0.3 * p.m))),
    "sigmoid, smoothed": ({"beta": 0.3, "label_smoothing": 0.2}, lambda p: cdpo(0.3 * p.m, 0.2)),
    "hinge": ({"beta": 0.05}, lambda p: max(0, 1 - 0.05 * p.m)),
    "ipo": ({"beta": 0.1}, lambda p: (p.m - 5) ** 2),
    "exo_pair": ({"beta": 0.2, "label_smoothing": 0.01}, lambda p: exo(0.2 * p.m, 0.01)),
    "robust": ({"beta": 0.2, "label_smoothing": 0.1}, lambda p: robust(0.2 * p.m, 0.1)),
    "discopop": ({"beta": 0.1, "temperature": 0.3}, lambda p: disco(0.1 * p.m, 0.3)),
    "sigmoid_norm": (
        {"beta": 5.0, "chosen_length": ..., "rejected_length": ...},
        lambda p: -log(s(5 * (p.c / p.nc - p.r / p.nr))),
    ),
    "ipo, per token": (
        {"beta": 0.1, "chosen_length": ..., "rejected_length": ...},
        lambda p: (p.c / p.nc - p.r / p.nr - 5) ** 2,
    ),
    "nca_pair": (
        {"beta": 0.1},
        lambda p: -log(s(0.1 * p.c)) - 0.5 * log(s(-0.1 * p.c)) - 0.5 * log(s(-0.1 * p.r)),
    ),
    "bco_pair": ({"beta": 0.1}, lambda p: -log(s(0.1 * p.c)) - log(s(-0.1 * p.r))),
    "sppo_hard": ({"beta": 0.1}, lambda p: (p.c - 5) ** 2 + (p.r + 5) ** 2),
    "apo_zero": ({"beta": 0.1}, lambda p: 1 - s(0.1 * p.c) + s(0.1 * p.r)),
    "apo_down": ({"beta": 0.1}, lambda p: s(0.1 * p.c) + 1 - s(0.1 * (p.c - p.r))),
    "sft": ({}, lambda p: -p.pc),
    "cpo": ({"beta": 0.1, "label_smoothing": 0.1}, lambda p: cdpo(0.1 * (p.pc - p.pr), 0.1)),
    "tpo": ({"beta": 0.1}, lambda p: -log(s(0.1 * (p.pc - p.pr)))),
    "simpo": (
        {"beta": 2.0, "gamma": 0.5},
        lambda p: -log(s(2 * (p.pc / p.nc - p.pr / p.nr) - 0.5)),
    ),
    "tpo-l": (
        {"beta": 2.0, "gamma": 0.5},
        lambda p: -log(s(2 * (p.pc / p.nc - p.pr / p.nr) - 0.5)),
    ),
    "alphapo": (
        {"beta": 2.0, "gamma": 0.5, "alpha": 0.1},
        lambda p: -log(s(2 * (reward(p.pc / p.nc, 0.1) - reward(p.pr / p.nr, 0.1)) - 0.5)),
    ),
    "orpo": ({}, lambda p: -log(s(log_odds(p.pc / p.nc) - log_odds(p.pr / p.nr)))),
}
# Batch losses: of the lists of c, r and the margins of policy and reference, sorted.
BATCH = {"aot": lambda x: cdpo(0.2 * x, 0.1), "aot_unpaired": lambda x: cdpo(0.2 * x, 0.1)}


class Pair:
    def __init__(self, pc, pr, rc, rr, nc, nr):
        self.pc, self.pr, self.rc, self.rr, self.nc, self.nr = map(float, (pc, pr, rc, rr, nc, nr))
        self.c, self.r = self.pc - self.rc, self.pr - self.rr
        self.m = self.c - self.r


def naive(case):
    if case not in BATCH:
        return [CASES[case][1](Pair(*row)) for row in zip(*DATA.values(), strict=True)]
    pc, pr, rc, rr = (DATA[name] for name in LOG_PROBS)
    high, low = (pc - pr, rc - rr) if case == "aot" else (pc - rc, pr - rr)
    return [BATCH[case](a - b) for a, b in zip(sorted(high), sorted(low), strict=True)]


def setting(case, make=np.asarray):
    """Return the arrays of a case, by name, and its options."""
    options = {"beta": 0.2, "label_smoothing": 0.1} if case in BATCH else dict(CASES[case][0])
    parameters = inspect.signature(PAIR_LOSSES[case.partition(",")[0]]).parameters.values()
    names = [p.name for p in parameters if p.default is p.empty and p.kind is not p.KEYWORD_ONLY]
    arrays = {name: make(DATA[name]) for name in names}
    lengths = {name: make(DATA[name]) for name, value in options.items() if value is ...}
    return arrays, options | lengths


def value(case, arrays, options):
    return pair_loss(case.partition(",")[0], *arrays.values(), **options)


def gradients_in_torch(case):
    arrays, options = setting(case, torch.tensor)
    leaves = [a.requires_grad_() for name, a in arrays.items() if name in LOG_PROBS]
    return torch.autograd.grad(value(case, arrays, options).sum(), leaves)


ALL = [*CASES, *BATCH]


def test_every_loss_is_a_case():
    assert {case.partition(",")[0] for case in ALL} == set(PAIR_LOSSES)


@pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)
@pytest.mark.parametrize("case", ALL)
def test_every_library_gives_the_plain_loop(case, make):
    got = value(case, *setting(case, make))
    np.testing.assert_allclose(same(got), naive(case), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("case", ALL)
def test_lists_and_other_shapes(case):
    arrays, options = setting(case, lambda row: row.tolist())
    np.testing.assert_allclose(value(case, arrays, options), naive(case), rtol=1e-11, atol=1e-14)
    arrays, options = setting(case, lambda row: np.stack([row, row], axis=-1))
    got = value(case, arrays, options)
    np.testing.assert_allclose(got[:, 1], naive(case), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("case", ALL)
def test_gradcheck(case):
    arrays, options = setting(case, torch.tensor)
    leaves = {name: a.requires_grad_() for name, a in arrays.items() if name in LOG_PROBS}

    def loss(*moved):
        return value(case, arrays | dict(zip(leaves, moved, strict=True)), options)

    assert torch.autograd.gradcheck(loss, tuple(leaves.values()))


@pytest.mark.parametrize("case", ALL)
def test_jax_differentiates_and_compiles_each(case):
    arrays, options = setting(case, LIBRARIES["jax"])
    fixed = {name: a for name, a in arrays.items() if name not in LOG_PROBS}

    def total(leaves, fixed):
        return value(case, leaves | fixed, options).sum()

    leaves = {name: a for name, a in arrays.items() if name in LOG_PROBS}
    loss, gradients = jax.jit(jax.value_and_grad(total))(leaves, fixed)
    assert float(loss) == pytest.approx(sum(naive(case)), rel=1e-11)
    for name, expected in zip(leaves, gradients_in_torch(case), strict=True):
        np.testing.assert_allclose(same(gradients[name]), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*lru_cache:UserWarning")
@pytest.mark.parametrize("case", ALL)
def test_torch_compiles_each_without_a_break(case):
    torch.compiler.reset()
    arrays, options = setting(case, torch.tensor)
    loss = PAIR_LOSSES[case.partition(",")[0]]
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(*arrays.values(), **options), loss(*arrays.values(), **options)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", [case for case in ALL if case != "alphapo"])
def test_far_margins_stay_finite(case, dtype):
    far = [(-1.0, -1e6), (-1e6, -1.0), (-1e6, -1e6)]
    arrays, options = setting(case, torch.tensor)
    for column, name in enumerate(("policy_chosen", "policy_rejected")):
        if name in arrays:
            arrays[name] = torch.tensor([row[column] for row in far], dtype=dtype)
    for name in ("reference_chosen", "reference_rejected"):
        if name in arrays:
            arrays[name] = torch.full((3,), -1.0, dtype=dtype)
    for name in LENGTHS:
        for holder in (arrays, options):
            if name in holder:
                holder[name] = torch.ones(3, dtype=torch.int64)
    leaves = [a.requires_grad_() for name, a in arrays.items() if name.startswith("policy")]
    loss = value(case, arrays, options)
    assert loss.dtype == dtype
    assert torch.isfinite(loss).all()
    for gradient in torch.autograd.grad(loss.sum(), leaves):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("case", ALL)
def test_16_bits_are_computed_in_32(case):
    arrays, options = setting(case, torch.tensor)
    half = {name: a.bfloat16() if name in LOG_PROBS else a for name, a in arrays.items()}
    exact = {name: a.double() if name in LOG_PROBS else a for name, a in half.items()}
    got = value(case, half, options)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), value(case, exact, options), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if "reference_chosen" in setting(case)[0]])
def test_a_wrong_shape_is_named(case):
    arrays, options = setting(case)
    arrays["reference_rejected"] = np.zeros(3)
    with pytest.raises(ShapeError, match=r"policy_chosen \(5,\).* reference_rejected \(3,\)"):
        value(case, arrays, options)


@pytest.mark.parametrize("case", [case for case in ALL if "beta" in setting(case)[1]])
@pytest.mark.parametrize("beta", [0, -0.1, math.inf, math.nan])
def test_beta_is_above_zero(case, beta):
    arrays, options = setting(case)
    with pytest.raises(ValueError, match=f"beta is {beta}; expected a number above 0"):
        value(case, arrays, options | {"beta": beta})


@pytest.mark.parametrize("case", [case for case in ALL if "label_smoothing" in setting(case)[1]])
@pytest.mark.parametrize("share", [-0.1, 0.5, 1.0, math.nan])
def test_label_smoothing_is_below_one_half(case, share):
    arrays, options = setting(case)
    with pytest.raises(ValueError, match=rf"label_smoothing is {share}; .* below 0\.5"):
        value(case, arrays, options | {"label_smoothing": share})


@pytest.mark.parametrize("make", [np.asarray, torch.tensor])
@pytest.mark.parametrize("option", ["beta", "label_smoothing", "gamma", "alpha"])
def test_a_number_for_each_pair_is_refused(option, make):
    """It would be broadcast, a column to B × B losses."""
    arrays, options = setting("alphapo", make)
    with pytest.raises(ShapeError, match=rf"{option} has shape \(5, 1\); expected one number"):
        value("alphapo", arrays, options | {option: make([[0.1]] * PAIRS)})


@pytest.mark.parametrize("option", ["gamma", "alpha"])
@pytest.mark.parametrize("given", [math.nan, math.inf, -math.inf])
def test_the_shape_of_alphapo_is_finite(option, given):
    arrays, options = setting("alphapo")
    with pytest.raises(ValueError, match=f"{option} is {given}; expected a finite number"):
        value("alphapo", arrays, options | {option: given})


@pytest.mark.parametrize("case", ["sigmoid, smoothed", "cpo", "aot", "robust", "simpo"])
def test_an_answer_that_cannot_occur_costs_infinity(case):
    """Its loss is (1 − ε) ∞ + ε 0, and its gradient that of a far margin."""
    arrays, options = setting(case, torch.tensor)
    arrays["policy_chosen"] = torch.full((PAIRS,), -math.inf, dtype=torch.float64)
    leaf = arrays["policy_chosen"].requires_grad_()
    loss = value(case, arrays, options)
    assert bool((loss == math.inf).all())
    assert torch.isfinite(torch.autograd.grad(loss.sum(), leaf)[0]).all()


def test_exo_needs_label_smoothing():
    with pytest.raises(ValueError, match=r"label_smoothing is 0\.0; .* above 0 and below"):
        pair_loss("exo_pair", *[[0.0]] * 4, label_smoothing=0.0)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (([3, 0], [1, 2]), ValueError, "chosen_length goes from 0 to 3; expected the number"),
        (([3, 2], [1, 2.5]), ValueError, r"rejected_length goes from 1 to 2\.5; .* whole number"),
        (([3, math.nan], [1, 2]), ValueError, "chosen_length goes from nan to nan"),
        (([3, math.inf], [1, 2]), ValueError, "chosen_length goes from 3 to inf"),
        (([3], [1, 2]), ShapeError, r"chosen_length \(1,\), log-probabilities \(2,\)"),
    ],
)
@pytest.mark.parametrize("name", ["ipo", "sigmoid_norm", "simpo", "orpo"])
def test_lengths_count_tokens(name, lengths, error, message):
    arrays, options = [[-1.0, -2.0]] * 2, dict(zip(LENGTHS, lengths, strict=True))
    if name in ("simpo", "orpo"):
        arrays, options = [*arrays, *lengths], {}
    else:
        arrays = arrays * 2
    with pytest.raises(error, match=message):
        pair_loss(name, *arrays, **options)


def test_ipo_takes_both_lengths_or_neither():
    with pytest.raises(ValueError, match="only chosen_length is given; give both lengths"):
        pair_loss("ipo", *[[-1.0]] * 4, chosen_length=[3])


@pytest.mark.parametrize("name", BATCH)
def test_one_pair_alone_is_no_batch(name):
    with pytest.raises(ShapeError, match=r"single numbers; expected \(B, …\), a batch"):
        pair_loss(name, -1.0, -2.0, -1.0, -2.0)


def test_probabilities_above_one_have_no_odds():
    with pytest.raises(ValueError, match=r"policy_rejected holds a mean log-probability of 0\.25"):
        pair_loss("orpo", [-1.0], [0.5], [1], [2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pair_loss("sigmiod", 0.0), ValueError, "preference loss 'sigmiod'; did you mean"),
        (
            lambda: pair_loss("zzz", 0.0),
            ValueError,
            "unknown preference loss 'zzz'; valid: sigmoid",
        ),
        (
            lambda: pair_loss("cpo", *[[0.0]] * 4),
            ShapeError,
            r"cpo was given 4 array\(s\); expected 2: policy_chosen, policy_rejected",
        ),
        (
            lambda: pair_loss("apo_zero", *[[0.0]] * 4, label_smoothing=0.1),
            ValueError,
            "label_smoothing has no meaning for apo_zero; its options are beta",
        ),
        (
            lambda: pair_loss("nca_pair", *[[0.0]] * 4, divergence="forward_kl"),
            ValueError,
            "divergence has no meaning for nca_pair; its options are beta",
        ),
        (
            lambda: pair_loss("sft", [0.0], beta=0.1),
            ValueError,
            "beta has no meaning for sft; it has no options",
        ),
        (
            lambda: pair_loss("sigmoid_norm", *[[0.0]] * 4),
            ValueError,
            "sigmoid_norm needs chosen_length and rejected_length",
        ),
    ],
)
def test_the_table_refuses_what_has_no_meaning(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError, match="does not support item assignment"):
        PAIR_LOSSES["mine"] = abs  # type: ignore[index]
