from __future__ import annotations

import math
import warnings
from functools import partial

import jax
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from libraries import LIBRARIES, same

from tunemath.errors import ShapeError
from tunemath.objective.distillation import distillation_loss

STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, 2, 3, 7)) * 2


def loop_kl(p, q):
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mixed(p, q, share):
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


def loop_js(t, s, weight=0.2):
    m = mixed(t, s, weight)
    return weight * loop_kl(t, m) + (1 - weight) * loop_kl(s, m)


# The options, D of teacher and student as a loop, and the power of the temperature.
CASES = {
    "forward": ({}, loop_kl, 2),
    "reverse": ({"divergence": "reverse_kl"}, lambda t, s: loop_kl(s, t), 2),
    "js": ({"divergence": "js", "weight": 0.2}, loop_js, 2),
    "skewed forward": (
        {"divergence": "skewed_forward_kl"},
        lambda t, s: loop_kl(t, mixed(t, s, 0.1)),
        2,
    ),
    "skewed reverse": (
        {"divergence": "skewed_reverse_kl", "skew": 0.3},
        lambda t, s: loop_kl(s, mixed(s, t, 0.3)),
        2,
    ),
    "total variation": (
        {"divergence": "total_variation"},
        lambda t, s: sum(abs(a - b) for a, b in zip(t, s, strict=True)) / 2,
        1,
    ),
}
every_case = pytest.mark.parametrize(("options", "loop", "power"), CASES.values(), ids=CASES)


def softmax(logits, temperature):
    weights = [math.exp(value / temperature) for value in logits]
    return [weight / math.fsum(weights) for weight in weights]


@pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)
@every_case
def test_every_library_gives_the_naive_loop(options, loop, power, make):
    got = distillation_loss(make(STUDENT), make(TEACHER), temperature=1.5, **options)
    expected = np.empty((2, 3))
    for place in np.ndindex(expected.shape):
        t, s = softmax(TEACHER[place], 1.5), softmax(STUDENT[place], 1.5)
        expected[place] = 1.5**power * loop(t, s)
    np.testing.assert_allclose(same(got), expected, rtol=1e-12)


def value_and_gradient(loss, temperature=1.0, dtype=torch.float64):
    student = torch.tensor(STUDENT, dtype=dtype, requires_grad=True)
    value = loss(student, torch.tensor(TEACHER, dtype=dtype), temperature)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    return value.detach(), gradient


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_is_hintons_loss_as_torch_writes_it(temperature):
    def theirs(student, teacher, t):
        log_s, p_t = (student / t).log_softmax(-1), (teacher / t).softmax(-1)
        return t**2 * torch.nn.functional.kl_div(log_s, p_t, reduction="none").sum(-1)

    torch.testing.assert_close(
        value_and_gradient(lambda s, t, tau: distillation_loss(s, t, temperature=tau), temperature),
        value_and_gradient(theirs, temperature),
    )


@pytest.fixture(scope="module")
def gkd():
    """TRL's generalised JSD, a static method of its GKD trainer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.gkd import GKDTrainer
    return partial(GKDTrainer.generalized_jsd_loss, reduction="sum")


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    ("beta", "options"),
    [
        (0.0, {"divergence": "forward_kl"}),
        (1.0, {"divergence": "reverse_kl"}),
        (0.5, {"divergence": "js"}),
        (0.1, {"divergence": "js", "weight": 0.1}),
        (0.9, {"divergence": "js", "weight": 0.9}),
    ],
)
def test_is_trls_gkd_times_the_squared_temperature(gkd, beta, options, temperature):
    def ours(student, teacher, tau):
        return distillation_loss(student, teacher, temperature=tau, **options).sum()

    def theirs(student, teacher, tau):
        return tau**2 * gkd(student, teacher, beta=beta, temperature=tau)

    for dtype in (torch.float64, torch.float32):
        torch.testing.assert_close(
            value_and_gradient(ours, temperature, dtype),
            value_and_gradient(theirs, temperature, dtype),
        )


@every_case
def test_gradcheck_and_no_gradient_to_the_teacher(options, loop, power):
    student = torch.tensor(STUDENT[0], requires_grad=True)
    teacher = torch.tensor(TEACHER[0], requires_grad=True)
    loss = partial(distillation_loss, temperature=2.0, **options)
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher.detach()), (student,))
    value = loss(student, teacher)
    assert torch.autograd.grad(value.sum(), teacher, allow_unused=True) == (None,)


@pytest.mark.parametrize("case", ["forward", "js", "skewed reverse", "total variation"])
def test_jax_traces_value_and_gradient(case):
    options, _, _ = CASES[case]
    loss = partial(distillation_loss, temperature=2.0, **options)
    traced = jax.jit(jax.value_and_grad(lambda s, t: loss(s, t).sum(), argnums=(0, 1)))
    make = LIBRARIES["jax"]
    value, (to_student, to_teacher) = traced(make(STUDENT), make(TEACHER))
    student = torch.tensor(STUDENT, requires_grad=True)
    expected = loss(student, torch.tensor(TEACHER)).sum()
    assert float(value) == pytest.approx(expected.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(expected, student)
    np.testing.assert_allclose(same(to_student), same(gradient), rtol=1e-10, atol=1e-14)
    assert not same(to_teacher).any()


@pytest.mark.parametrize(
    ("case", "factor"),
    [("forward", 1.0), ("reverse", 1.0), ("js", 0.16), ("skewed forward", 0.81)],
)
def test_the_limit_of_high_temperature(case, factor):
    """Hinton: half the variance of the difference of logits, (1/2V) Σ (centred difference)²."""
    options, _, _ = CASES[case]
    difference = STUDENT - TEACHER
    centred = difference - difference.mean(-1, keepdims=True)
    expected = factor * (centred**2).mean(-1) / 2
    got = distillation_loss(STUDENT, TEACHER, temperature=1e6, **options)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    (gradient,) = torch.autograd.grad(
        distillation_loss(
            student := torch.tensor(STUDENT, requires_grad=True),
            torch.tensor(TEACHER),
            temperature=1e6,
            **options,
        ).sum(),
        student,
    )
    np.testing.assert_allclose(same(gradient), factor * centred / 7, rtol=1e-4, atol=1e-6)


def test_total_variation_at_high_temperature_is_half_the_mean_difference():
    difference = STUDENT - TEACHER
    centred = difference - difference.mean(-1, keepdims=True)
    got = distillation_loss(STUDENT, TEACHER, divergence="total_variation", temperature=1e6)
    np.testing.assert_allclose(got, np.abs(centred).mean(-1) / 2, rtol=1e-4)


@every_case
def test_extreme_logits_stay_finite(options, loop, power):
    for dtype in (torch.float32, torch.float64):
        student = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
        teacher = torch.tensor([[-1e4, 1e4, 0.0]], dtype=dtype)
        loss = distillation_loss(student, teacher, **options)
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("case", "student", "teacher", "expected"),
    [
        ("forward", [0.0, -math.inf], [0.0, 0.0], math.inf),
        ("forward", [0.0, 0.0], [0.0, -math.inf], math.log(2)),
        ("reverse", [0.0, -math.inf], [0.0, 0.0], math.log(2)),
        ("reverse", [0.0, 0.0], [0.0, -math.inf], math.inf),
        ("js", [0.0, -math.inf], [-math.inf, 0.0], math.log(5) - 0.8 * math.log(4)),
        ("skewed forward", [0.0, -math.inf], [-math.inf, 0.0], math.log(10)),
        ("total variation", [0.0, -math.inf], [-math.inf, 0.0], 1.0),
        ("total variation", [0.0, -math.inf], [0.0, 0.0], 0.5),
    ],
)
def test_impossible_tokens(case, student, teacher, expected):
    student = torch.tensor(student, dtype=torch.float64, requires_grad=True)
    loss = distillation_loss(student, torch.tensor(teacher, dtype=torch.float64), **CASES[case][0])
    assert loss.item() == pytest.approx(expected, rel=1e-14)
    if expected < math.inf:
        assert torch.isfinite(torch.autograd.grad(loss, student)[0]).all()


@pytest.mark.parametrize("case", ["forward", "reverse", "js", "skewed forward", "skewed reverse"])
def test_float32_keeps_a_small_distance(case):
    rng = np.random.default_rng(1)
    teacher = np.float32(rng.normal(size=5000) * 3)
    student = np.float32(teacher + 1e-3 * rng.normal(size=5000))
    loss = partial(distillation_loss, **CASES[case][0])
    expected = loss(student.astype(np.float64), teacher.astype(np.float64))
    assert expected < 1e-6
    assert loss(student, teacher) == pytest.approx(expected, rel=1e-3)


def test_16_bit_logits_are_computed_in_float32():
    student, teacher = (torch.tensor(z, dtype=torch.bfloat16) for z in (STUDENT, TEACHER))
    for options, _, _ in CASES.values():
        got = distillation_loss(student, teacher, **options)
        assert got.dtype == torch.float32
        torch.testing.assert_close(
            got, distillation_loss(student.float(), teacher.float(), **options)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 0.5}, "weight has no meaning for forward_kl; leave it out, or choose js"),
        ({"divergence": "js", "skew": 0.1}, "skew has no meaning for js; .* skewed_forward_kl or"),
        ({"divergence": "total_variation", "weight": 0.5}, "no meaning for total_variation"),
        ({"divergence": "kl"}, "divergence is 'kl'; expected one of forward_kl, reverse_kl, js"),
        (
            {"divergence": "js", "weight": 1.0},
            "weight is 1.0; expected a number from 1e-30 to below 1",
        ),
        ({"divergence": "skewed_reverse_kl", "skew": 0}, "skew is 0; expected a number from 1e-30"),
        ({"temperature": 0}, "temperature is 0; expected a number above 0"),
        ({"temperature": math.inf}, "temperature is inf"),
    ],
)
def test_options_without_a_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        distillation_loss(STUDENT, TEACHER, **options)


@pytest.mark.parametrize("options", [row[0] for row in CASES.values()])
@pytest.mark.parametrize("name", ["student_logits", "teacher_logits"])
def test_a_row_in_which_nothing_is_possible(name, options):
    given = {"student_logits": np.zeros((2, 3)), "teacher_logits": np.zeros((2, 3))}
    given[name][1] = -math.inf
    with pytest.raises(ValueError, match=rf"1 of 2 row\(s\) of {name} hold nothing but −inf"):
        distillation_loss(**given, **options)


def test_shapes_must_be_equal():
    with pytest.raises(ShapeError, match=r"student_logits \(2,\), teacher_logits \(3,\)"):
        distillation_loss(np.zeros(2), np.zeros(3))


logits = st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=2, max_size=8)


@given(logits, st.floats(0.1, 10), st.floats(-10, 10))
def test_laws(pairs, temperature, constant):
    """Never negative, 0 for equal logits, and a constant added to the logits changes nothing."""
    student, teacher = map(np.array, zip(*pairs, strict=True))
    for options, _, _ in CASES.values():
        loss = partial(distillation_loss, temperature=temperature, **options)
        value = loss(student, teacher)
        assert value >= 0
        assert loss(teacher, teacher) == 0
        assert loss(student + constant, teacher) == pytest.approx(value, rel=1e-6, abs=1e-10)
