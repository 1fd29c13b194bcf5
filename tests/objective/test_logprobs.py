from __future__ import annotations

import math

import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from libraries import LIBRARIES, same

import tolerance
from tunemath.errors import MaskError, ShapeError
from tunemath.objective import (
    adjusted_logits,
    bits_per_byte,
    cross_entropy,
    entropy,
    log_normaliser,
    log_sum_square_probs,
    mean_log_prob,
    perplexity,
    sequence_log_prob,
    token_log_probs,
)

every_library = pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)

LOGITS = np.random.default_rng(0).normal(size=(2, 3, 5)) * 4
TARGETS = np.array([[0, 4, 2], [1, 1, 3]])


def naive(logits, targets):
    result = np.empty(targets.shape)
    for place in np.ndindex(targets.shape):
        normaliser = math.fsum(math.exp(value) for value in logits[place])
        result[place] = logits[place][targets[place]] - math.log(normaliser)
    return result


@every_library
def test_every_library_gives_the_naive_loop(make):
    got = token_log_probs(make(LOGITS), make(TARGETS))
    np.testing.assert_allclose(same(got), naive(LOGITS, TARGETS), rtol=1e-13)


@every_library
def test_what_is_read_off_the_distribution(make):
    p = scipy.special.softmax(LOGITS, axis=-1)
    z = make(LOGITS)
    np.testing.assert_allclose(same(entropy(z)), scipy.stats.entropy(p, axis=-1), rtol=1e-13)
    np.testing.assert_allclose(same(log_normaliser(z)), scipy.special.logsumexp(LOGITS, axis=-1))
    np.testing.assert_allclose(same(log_sum_square_probs(z)), np.log((p**2).sum(-1)), rtol=1e-12)


@every_library
def test_length_normalised_is_the_loop(make):
    values = -np.arange(6.0).reshape(2, 3)
    mask = np.array([[True, False, True], [False, True, False]])
    got = mean_log_prob(make(values), make(mask))
    np.testing.assert_allclose(same(got), [(0.0 - 2.0) / 2, -4.0])
    np.testing.assert_allclose(same(sequence_log_prob(make(values), make(mask))), [-2.0, -4.0])


@every_library
def test_adjusted_logits_are_the_formula(make):
    got = adjusted_logits(make(LOGITS), scale=0.5, soft_cap=3.0, temperature=2.0)
    expected = [3.0 * math.tanh(0.5 * z / 3.0) / 2.0 for z in LOGITS.ravel()]
    np.testing.assert_allclose(same(got).ravel(), expected, rtol=1e-13)
    plain = adjusted_logits(make(LOGITS), scale=0.5, temperature=2.0)
    np.testing.assert_allclose(same(plain), LOGITS / 4, rtol=1e-15)


def test_adjusted_logits_limits():
    # A cap far above the logits changes nothing; one below them bounds them; −∞ stays.
    np.testing.assert_allclose(adjusted_logits(LOGITS, soft_cap=1e6), LOGITS, rtol=1e-9)
    assert adjusted_logits([1e4, -1e4, -math.inf], soft_cap=30.0).tolist() == [30, -30, -math.inf]
    z = torch.tensor([1.0, -math.inf], dtype=torch.float64, requires_grad=True)
    adjusted_logits(z, soft_cap=2.0)[0].backward()
    assert z.grad is not None
    assert z.grad.tolist() == pytest.approx([1 - math.tanh(0.5) ** 2, 0.0])


@pytest.mark.parametrize("option", ["scale", "soft_cap", "temperature"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_an_adjustment_without_meaning_is_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}; expected a number above 0"):
        adjusted_logits(LOGITS, **{option: value})


def test_entropy_equals_torch_in_value_and_gradient():
    z = torch.tensor(LOGITS, requires_grad=True)
    ours, theirs = entropy(z), torch.distributions.Categorical(logits=z).entropy()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), z), torch.autograd.grad(theirs.sum(), z)
    )


def test_entropy_of_peaked_and_impossible_tokens():
    assert entropy([0.0, -1e4, -math.inf]) == 0.0
    assert entropy([1e4, 1e4, -math.inf]) == pytest.approx(math.log(2), rel=1e-15)
    q = math.exp(-20.0)
    exact = math.log1p(q) + 20.0 * q / (1 + q)
    assert float(entropy(np.float32([0.0, -20.0]))) == pytest.approx(exact, rel=1e-6)
    z = torch.tensor([0.0, 3.0, -math.inf], dtype=torch.float64, requires_grad=True)
    entropy(z).backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("size", [2, 7, 1000])
def test_entropy_of_equals_is_log_v(size):
    assert entropy(np.full(size, 5.0)) == pytest.approx(math.log(size), rel=1e-14)
    assert log_sum_square_probs(np.full(size, 5.0)) == pytest.approx(-math.log(size), rel=1e-14)


def test_jensen_orders_the_two_entropies():
    z = np.random.default_rng(3).normal(size=(50, 20)) * 3
    assert np.all(-log_sum_square_probs(z) <= entropy(z) + 1e-12)


def test_a_nearly_certain_token_keeps_its_digits_in_float32():
    z = np.float32([0.0, -18.0, -19.0])
    exact = -math.log1p(math.exp(-18.0) + math.exp(-19.0))
    assert float(token_log_probs(z, 0)) == pytest.approx(exact, rel=1e-6, abs=0)
    # What the difference of two rounded numbers leaves of it:
    assert float(torch.log_softmax(torch.tensor(z), -1)[0]) != pytest.approx(exact, rel=0.1, abs=0)


def test_perplexity_and_bits():
    nats = np.array([1.0, 2.0, 0.5])
    assert perplexity(nats.mean()) == pytest.approx(math.exp(3.5 / 3), rel=1e-15)
    assert bits_per_byte(nats.sum(), 7) == pytest.approx(3.5 / 7 / math.log(2), rel=1e-15)
    # A uniform model over 256 byte values needs 8 bits a byte.
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8.0, rel=1e-15)
    for bad in (0, -3, math.inf, math.nan):
        with pytest.raises(ValueError, match="expected the number of bytes"):
            bits_per_byte(1.0, bad)
    with pytest.raises(ShapeError, match=r"nats \(2,\), n_bytes \(\)"):
        bits_per_byte([1.0, 2.0], 7)


def test_a_row_in_which_nothing_is_possible_raises():
    row = [[0.0, 1.0], [-math.inf, -math.inf]]
    for function in (entropy, log_normaliser, log_sum_square_probs):
        with pytest.raises(ValueError, match=r"1 of 2 row\(s\) of logits hold nothing but −inf"):
            function(row)
        with pytest.raises(ShapeError, match="the last axis"):
            function(0.5)


PER_ROW = {
    "token_log_probs": lambda z: token_log_probs(z, TARGETS[0].tolist()),
    "entropy": entropy,
    "log_normaliser": log_normaliser,
    "log_sum_square_probs": log_sum_square_probs,
    "adjusted_logits": lambda z: adjusted_logits(z, soft_cap=5.0, scale=0.3),
    "sequence_log_prob": lambda z: sequence_log_prob(z, [[1, 0, 1, 0, 1]] * 3),
    "mean_log_prob": lambda z: mean_log_prob(z, [[1, 0, 1, 0, 1]] * 3),
    "perplexity": lambda z: perplexity(z * 0.1),
}


@pytest.mark.parametrize("function", PER_ROW.values(), ids=PER_ROW)
def test_gradients_are_finite_differences_and_the_same_in_jax(function):
    z = torch.tensor(LOGITS[0], requires_grad=True)
    assert torch.autograd.gradcheck(function, (z,))
    (expected,) = torch.autograd.grad(function(z).sum(), z)
    gradient = jax.jit(jax.grad(lambda a: function(a).sum()))(jax.numpy.asarray(LOGITS[0]))
    np.testing.assert_allclose(np.asarray(gradient), expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(torch.func.grad(lambda a: function(a).sum())(z.detach()), expected)


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize(
    "name", ["token_log_probs", "entropy", "log_normaliser", "log_sum_square_probs"]
)
def test_extreme_logits_have_finite_values_and_gradients(name, size):
    z = torch.tensor([[size, 0.0, 1.0, -size, 2.0]] * 3, requires_grad=True)
    value = PER_ROW[name](z)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()


def test_masks_and_targets_may_be_traced():
    mask = jax.numpy.asarray([[True, False, True]])
    values = jax.numpy.asarray([[1.0, 2.0, 3.0]])
    assert jax.jit(sequence_log_prob)(values, mask).tolist() == [4.0]
    got = jax.jit(token_log_probs)(jax.numpy.asarray(LOGITS), jax.numpy.asarray(TARGETS))
    np.testing.assert_allclose(np.asarray(got), naive(LOGITS, TARGETS), rtol=1e-13)
    rows = torch.func.vmap(token_log_probs)(torch.tensor(LOGITS), torch.tensor(TARGETS))
    np.testing.assert_allclose(rows, naive(LOGITS, TARGETS), rtol=1e-13)


def test_lists_and_one_position():
    assert token_log_probs([0.0, 0.0], 1) == pytest.approx(-math.log(2))
    assert isinstance(cross_entropy([0.0, 0.0], 1), np.float64)


def test_cross_entropy_and_its_gradient_are_those_of_torch():
    logits = torch.tensor(LOGITS, dtype=torch.float32, requires_grad=True)
    targets = torch.tensor(TARGETS)
    ours = cross_entropy(logits, targets)
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    theirs = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
    )
    (expected,) = torch.autograd.grad(theirs.sum(), logits)
    torch.testing.assert_close(ours.flatten(), theirs)
    torch.testing.assert_close(gradient, expected)


def test_gradcheck():
    logits = torch.tensor(LOGITS, requires_grad=True)
    targets = torch.tensor(TARGETS)
    assert torch.autograd.gradcheck(lambda z: token_log_probs(z, targets), (logits,))
    values = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert torch.autograd.gradcheck(lambda v: sequence_log_prob(v, mask), (values,))


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([1]))
    loss.sum().backward()
    assert loss.item() == 2e4
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0]]


def test_an_impossible_token_has_probability_zero():
    values = token_log_probs([[0.0, -math.inf], [0.0, -math.inf]], [0, 1])
    assert values.tolist() == [0.0, -math.inf]


def test_a_constant_changes_nothing():
    moved = token_log_probs(LOGITS + 123.0, TARGETS)
    np.testing.assert_allclose(moved, token_log_probs(LOGITS, TARGETS), rtol=1e-12)


def test_16_bit_logits_are_computed_in_float32():
    logits = torch.tensor(LOGITS, dtype=torch.float16)
    got = token_log_probs(logits, torch.tensor(TARGETS))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, token_log_probs(logits.float(), torch.tensor(TARGETS)))


def test_no_position_at_all():
    assert token_log_probs(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([[0, -100, 2], [1, 1, 3]], MaskError, "targets contain -100"),
        ([[0, 5, 2], [1, 1, 3]], ShapeError, "target 5 does not fit a vocabulary of 5"),
        ([0, 1, 2], ShapeError, r"targets \(3,\) and logits \(2, 3, 5\)"),
        ([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], ShapeError, "expected integers"),
    ],
)
def test_bad_targets(targets, error, message):
    with pytest.raises(error, match=message):
        token_log_probs(LOGITS, targets)


def test_sequence_log_prob_is_the_loop_over_answer_tokens():
    values = token_log_probs(LOGITS, TARGETS)
    mask = [[0, 1, 1], [1, 0, 0]]
    expected = [values[0, 1] + values[0, 2], values[1, 0]]
    np.testing.assert_allclose(sequence_log_prob(values, mask), expected, rtol=1e-15)


def test_a_row_without_an_answer_raises():
    with pytest.raises(MaskError, match="1 of 2 row"):
        sequence_log_prob(np.zeros((2, 3)), [[0, 0, 0], [0, 1, 0]])
    with pytest.raises(ShapeError, match="shapes differ"):
        sequence_log_prob(np.zeros((2, 3)), [0, 1, 0])


@pytest.mark.parametrize("gap", [2.0, 6.0, 9.0, 12.0, 16.0])
def test_peaked_distributions_keep_their_digits_in_float32(gap):
    mpmath = pytest.importorskip("mpmath")
    z = np.float32(np.random.default_rng(5).normal(size=500))
    z[3] = gap + math.log(500)
    with mpmath.workdps(40):
        weights = [mpmath.exp(mpmath.mpf(float(value))) for value in z]
        p = [weight / mpmath.fsum(weights) for weight in weights]
        squares = float(mpmath.log(mpmath.fsum(q * q for q in p)))
        expected = float(-mpmath.fsum(q * mpmath.log(q) for q in p))
    # A few roundings of float32 in a row, and one sum of 500 that is formed by pairs.
    rel = tolerance.dot(2 * 9 + 8, np.float32)
    assert float(log_sum_square_probs(z)) == pytest.approx(squares, rel=rel, abs=0)
    assert float(entropy(z)) == pytest.approx(expected, rel=rel, abs=0)


OVER_TOKENS = {
    "token_log_probs": lambda z: token_log_probs(z, [0, 4, 2]),
    "entropy": entropy,
    "log_normaliser": log_normaliser,
    "log_sum_square_probs": log_sum_square_probs,
}


@pytest.mark.parametrize("function", OVER_TOKENS.values(), ids=OVER_TOKENS)
def test_tokens_that_cannot_occur_are_as_if_left_out(function):
    """Value and gradient are those of the logits without them, and theirs is zero."""
    z = torch.tensor(LOGITS[0], requires_grad=True)
    wider = torch.cat([z.detach(), torch.full((3, 2), -math.inf)], -1).requires_grad_()
    torch.testing.assert_close(function(wider), function(z), rtol=1e-14, atol=0)
    (expected,) = torch.autograd.grad(function(z).sum(), z)
    (gradient,) = torch.autograd.grad(function(wider).sum(), wider)
    assert gradient[:, 5:].tolist() == [[0.0, 0.0]] * 3
    torch.testing.assert_close(gradient[:, :5], expected)
    traced = jax.jit(jax.grad(lambda a: function(a).sum()))(jax.numpy.asarray(wider.tolist()))
    np.testing.assert_allclose(traced, gradient.numpy(), rtol=1e-10, atol=1e-14)


def test_an_impossible_target_has_a_finite_gradient():
    z = torch.tensor([0.0, -math.inf, 1.0], dtype=torch.float64, requires_grad=True)
    value = token_log_probs(z, torch.tensor(1))
    value.backward()
    assert value.item() == -math.inf
    assert z.grad is not None
    q = 1 / (1 + math.exp(1.0))
    assert z.grad.tolist() == pytest.approx([-q, 1.0, q - 1])


@pytest.mark.parametrize("name", PER_ROW)
def test_torch_maps_rows_by_vmap(name):
    z = torch.tensor(LOGITS)
    got = torch.func.vmap(PER_ROW[name])(z)
    torch.testing.assert_close(got, torch.stack([PER_ROW[name](one) for one in z]))


@pytest.mark.parametrize("name", PER_ROW)
def test_jax_without_64_bits(name):
    """Targets, masks and values stay in the 32 bits that JAX has by default, without a warning."""
    with jax.enable_x64(False):
        z = jax.numpy.asarray(LOGITS[0])
        value, gradient = jax.value_and_grad(lambda a: PER_ROW[name](a).sum())(z)
        assert (value.dtype, gradient.dtype) == (np.float32, np.float32)
    assert float(value) == pytest.approx(float(PER_ROW[name](LOGITS[0]).sum()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*lru_cache:UserWarning")
@pytest.mark.parametrize(
    ("function", "second"),
    [
        (token_log_probs, TARGETS),
        (sequence_log_prob, LOGITS > -1),
        (mean_log_prob, LOGITS > -1),
        (bits_per_byte, np.exp(LOGITS)),
        (lambda z, _: adjusted_logits(z, scale=0.3, soft_cap=5.0), LOGITS),
        (lambda z, _: perplexity(z), LOGITS),
        (lambda z, _: entropy(z) + log_normaliser(z) * log_sum_square_probs(z), LOGITS),
    ],
)
def test_torch_compiles_without_a_break(function, second):
    torch.compiler.reset()
    given = torch.tensor(LOGITS), torch.tensor(second)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), function(*given))
