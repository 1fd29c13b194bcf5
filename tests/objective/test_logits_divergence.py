from __future__ import annotations

import math

import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from libraries import LIBRARIES, same

from tunemath.errors import ShapeError
from tunemath.objective import kl_from_logits, masked_mean

# While JAX traces, no value can be looked at, and the general way is taken.
traced = jax.jit(jax.value_and_grad(lambda z, y: kl_from_logits(z, y)))


def exact(tuned, base):
    """KL of softmaxes by the textbook formula, in 60 digits."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        z, y = [mpmath.mpf(float(v)) for v in tuned], [mpmath.mpf(float(v)) for v in base]
        a = mpmath.log(mpmath.fsum(map(mpmath.exp, z)))
        b = mpmath.log(mpmath.fsum(map(mpmath.exp, y)))
        return float(
            mpmath.fsum(mpmath.exp(u - a) * ((u - a) - (v - b)) for u, v in zip(z, y, strict=True))
        )


def pair(scale, size=1000, seed=0, offset=0.0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=size) * 3
    return (base + scale * rng.normal(size=size) + offset).astype(dtype), base.astype(dtype)


@pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)
def test_every_library_gives_scipys_entropy(make):
    z, y = np.random.default_rng(1).normal(size=(2, 2, 3, 7))
    p, q = scipy.special.softmax(z, axis=-1), scipy.special.softmax(y, axis=-1)
    expected = scipy.stats.entropy(p, q, axis=-1)
    np.testing.assert_allclose(same(kl_from_logits(make(z), make(y))), expected, rtol=1e-12)


def test_gradients():
    torch.manual_seed(0)
    z, y = torch.randn(2, 2, 6, dtype=torch.float64, requires_grad=True).unbind(0)
    assert torch.autograd.gradcheck(kl_from_logits, (z, y))
    p, q = torch.softmax(z, -1), torch.softmax(y, -1)
    # dKL/dz_v = p_v (log p_v − log q_v − KL), by hand.
    (gradient,) = torch.autograd.grad(kl_from_logits(z, y).sum(), z)
    log_ratio = p.log() - q.log()
    torch.testing.assert_close(gradient, p * (log_ratio - (p * log_ratio).sum(-1, keepdim=True)))


def test_gradients_where_some_logits_are_far_or_impossible():
    tuned = torch.tensor([[200.0, 0.0, 1.0], [0.0, -math.inf, 1.0]], dtype=torch.float64)
    base = torch.tensor([[0.0, 3.0, 1.0], [1.0, 0.5, 0.0]], dtype=torch.float64)
    finite = torch.isfinite(tuned)
    free = torch.where(finite, tuned, 0.0).requires_grad_()
    fixed = base.clone().requires_grad_()

    def kl(z, y):
        return kl_from_logits(z.masked_fill(~finite, -math.inf), y)

    assert torch.autograd.gradcheck(kl, (free, fixed))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.1, 1.0, 10.0, 60.0, 1000.0])
@pytest.mark.parametrize("offset", [0.0, 25.0])
def test_accuracy_of_float64_at_any_distance(scale, offset):
    tuned, base = pair(scale, size=200, offset=offset)
    assert kl_from_logits(tuned, base) == pytest.approx(exact(tuned, base), rel=1e-8)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("make", [np.asarray, torch.tensor])
def test_float32_keeps_a_movement_of_a_millionth_of_a_nat(make, seed):
    tuned, base = pair(1.4e-3, size=49152, seed=seed, dtype=np.float32)
    reference = kl_from_logits(tuned.astype(np.float64), base.astype(np.float64))
    assert 5e-7 < reference < 2e-6
    assert float(kl_from_logits(make(tuned), make(base))) == pytest.approx(reference, rel=1e-5)


def test_float32_at_any_distance():
    for scale in (1e-3, 0.1, 1.0, 10.0, 100.0, 1e4):
        tuned, base = pair(scale, dtype=np.float32)
        reference = kl_from_logits(tuned.astype(np.float64), base.astype(np.float64))
        assert kl_from_logits(tuned, base) == pytest.approx(reference, rel=1e-4)


def test_rows_far_apart_do_not_disturb_their_neighbours():
    near, far = pair(0.01, size=50), pair(300.0, size=50)
    together = kl_from_logits(np.stack([near[0], far[0]]), np.stack([near[1], far[1]]))
    assert together[0] == pytest.approx(exact(*near), rel=1e-9)
    assert together[1] == pytest.approx(exact(*far), rel=1e-12)


def test_impossible_tokens():
    inf = math.inf
    assert kl_from_logits([0.0, 0.0, -inf], [0.0, 0.0, -inf]) == 0.0
    assert kl_from_logits([0.0, -inf], [0.0, 0.0]) == pytest.approx(math.log(2), rel=1e-15)
    assert kl_from_logits([0.0, 0.0], [0.0, -inf]) == inf
    rows = kl_from_logits([[0.0, 0.0], [0.0, 1.0]], [[0.0, -inf], [0.0, 1.0]])
    assert rows.tolist() == [inf, 0.0]


logits = st.lists(st.tuples(st.floats(-300, 300), st.floats(-300, 300)), min_size=2, max_size=12)


@pytest.mark.parametrize(
    ("tuned", "base", "error", "message"),
    [
        ([0.0, 1.0], [0.0, 1.0, 2.0], ShapeError, r"tuned \(2,\), base \(3,\)"),
        (0.0, 0.0, ShapeError, "the last axis over outcomes"),
        ([[-math.inf] * 2, [0, 1]], [[0, 1]] * 2, ValueError, r"1 of 2 row\(s\) of tuned hold no"),
        ([0.0, 1.0], [-math.inf] * 2, ValueError, r"1 of 1 row\(s\) of base hold nothing but −inf"),
    ],
)
def test_what_are_no_logits(tuned, base, error, message):
    with pytest.raises(error, match=message):
        kl_from_logits(tuned, base)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.1, 1.0, 10.0, 60.0, 1000.0])
def test_traced_it_is_as_accurate_and_has_the_same_gradient(scale):
    make = LIBRARIES["jax"]
    tuned, base = pair(scale, size=200)
    value, gradient = traced(make(tuned), make(base))
    assert float(value) == pytest.approx(exact(tuned, base), rel=1e-8)
    # dKL/dz_v = p_v (log p_v − log q_v − KL), by hand.
    log_p, log_q = scipy.special.log_softmax(tuned), scipy.special.log_softmax(base)
    expected = np.exp(log_p) * (log_p - log_q - exact(tuned, base))
    np.testing.assert_allclose(same(gradient), expected, rtol=1e-6, atol=1e-15)


def test_traced_in_float32_a_small_movement_keeps_its_digits():
    tuned, base = pair(1.4e-3, size=200, dtype=np.float32)
    make = LIBRARIES["jax"]
    value, _ = traced(make(tuned), make(base))
    assert value.dtype == np.float32
    assert float(value) == pytest.approx(exact(tuned, base), rel=1e-5)


def test_rows_mapped_by_vmap_are_the_rows():
    rows = [pair(0.01, size=20), pair(300.0, size=20), pair(1.0, size=20)]
    tuned, base = (np.stack(side) for side in zip(*rows, strict=True))
    tuned[2, 3] = base[2, 3] = -math.inf
    expected = kl_from_logits(tuned, base)
    make = LIBRARIES["jax"]
    got = jax.vmap(kl_from_logits)(make(tuned), make(base))
    np.testing.assert_allclose(same(got), expected, rtol=1e-12)
    got = torch.func.vmap(kl_from_logits)(torch.tensor(tuned), torch.tensor(base))
    np.testing.assert_allclose(same(got), expected, rtol=1e-12)
    gradient = torch.func.vmap(torch.func.grad(kl_from_logits))
    assert torch.isfinite(gradient(torch.tensor(tuned), torch.tensor(base))).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*lru_cache:UserWarning")
def test_compiled_by_torch_it_is_the_same():
    tuned, base = map(torch.tensor, pair(0.1, size=200))
    compiled = torch.compile(kl_from_logits, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tuned, base), kl_from_logits(tuned, base))


@given(logits)
def test_never_negative_and_zero_for_equals(pairs):
    tuned, base = map(list, zip(*pairs, strict=True))
    assert kl_from_logits(tuned, base) >= 0
    assert kl_from_logits(np.float32(tuned), np.float32(base)) >= 0
    assert kl_from_logits(tuned, tuned) == 0.0


@given(logits)
def test_against_60_digits(pairs):
    tuned, base = map(list, zip(*pairs, strict=True))
    assert kl_from_logits(tuned, base) == pytest.approx(exact(tuned, base), rel=1e-6, abs=1e-24)


@given(logits, st.floats(-50, 50))
def test_a_constant_changes_nothing(pairs, constant):
    tuned, base = map(np.array, zip(*pairs, strict=True))
    moved = kl_from_logits(tuned + constant, base)
    assert moved == pytest.approx(kl_from_logits(tuned, base), rel=1e-6, abs=1e-11)
    assert kl_from_logits(tuned, tuned + constant) <= 1e-24


@pytest.mark.parametrize(
    ("tuned", "base"),
    [
        ([0.0, -math.inf], [-math.inf, -800.0]),
        ([0.0, -5.0], [-math.inf, -2000.0]),
        ([0.0, 1e4], [0.0, -math.inf]),
    ],
)
def test_an_infinite_row_that_is_masked_out_leaves_no_trace_in_the_gradient(tuned, base):
    rows = torch.tensor([[tuned, [1.0, 0.0]], [base, [0.0, 0.0]]], requires_grad=True)
    kl = kl_from_logits(*rows.unbind(0))
    assert kl[0] == math.inf
    (gradient,) = torch.autograd.grad(masked_mean(kl, [False, True]), rows)
    assert not gradient[:, 0].any()
    (alone,) = torch.autograd.grad(kl_from_logits(rows[0, 1], rows[1, 1]), rows)
    torch.testing.assert_close(gradient[:, 1], alone[:, 1])
