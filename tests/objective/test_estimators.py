from __future__ import annotations

import math

import jax
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from libraries import LIBRARIES, same

from tunemath.errors import ShapeError
from tunemath.objective.estimators import kl_k1, kl_k2, kl_k3

P_LOG, Q_LOG = -np.random.default_rng(0).gamma(2.0, size=(2, 3, 4))

LOOPS = {
    kl_k1: lambda p, q: math.log(p) - math.log(q),
    kl_k2: lambda p, q: math.log(p / q) ** 2 / 2,
    kl_k3: lambda p, q: q / p - 1 - math.log(q / p),
}
every_estimator = pytest.mark.parametrize("ours", LOOPS)


@pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)
@every_estimator
def test_every_library_gives_the_naive_loop(ours, make):
    tokens = zip(P_LOG.ravel(), Q_LOG.ravel(), strict=True)
    expected = [LOOPS[ours](math.exp(p), math.exp(q)) for p, q in tokens]
    got = same(ours(make(P_LOG), make(Q_LOG)))
    np.testing.assert_allclose(got.ravel(), expected, rtol=1e-10)


def test_tokens_computed_by_hand():
    assert kl_k1(math.log(0.5), math.log(0.25)) == pytest.approx(math.log(2))
    assert kl_k2(math.log(0.5), math.log(0.25)) == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_k3(math.log(0.5), math.log(0.25)) == pytest.approx(math.log(2) - 0.5)


def test_k3_is_the_term_of_grpo_as_trl_writes_it():
    p, q = torch.tensor(P_LOG), torch.tensor(Q_LOG)
    torch.testing.assert_close(kl_k3(p, q), torch.exp(q - p) - (q - p) - 1)


@every_estimator
def test_gradients_of_torch_and_jax(ours):
    leaves = [torch.tensor(row, requires_grad=True) for row in (P_LOG, Q_LOG)]
    assert torch.autograd.gradcheck(ours, leaves)
    make = LIBRARIES["jax"]
    traced = jax.jit(jax.value_and_grad(lambda p, q: ours(p, q).sum(), argnums=(0, 1)))
    value, gradients = traced(make(P_LOG), make(Q_LOG))
    expected = ours(*leaves).sum()
    assert float(value) == pytest.approx(expected.item(), rel=1e-13)
    for got, leaf in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        np.testing.assert_allclose(same(got), same(leaf), rtol=1e-12)


def enumerated(ours, scale=1.0):
    """Sum over every outcome of p times the estimate, and of p times its gradient.

    Returns them with both KLs and their gradients, from torch.distributions, all with respect to
    the policy's logits.
    """
    logits, step = torch.randn(
        2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).unbind(0)
    policy = torch.distributions.Categorical(logits=logits.requires_grad_())
    reference = torch.distributions.Categorical(logits=(logits + scale * step).detach())
    estimates = ours(policy.logits, reference.logits)
    values = [
        (policy.probs.detach() * estimates).sum(),
        torch.distributions.kl_divergence(policy, reference),
        torch.distributions.kl_divergence(reference, policy),
    ]
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in values]
    return [value.item() for value in values], gradients


def test_k1_tells_the_value_and_has_no_gradient():
    (value, kl, _), (gradient, _, _) = enumerated(kl_k1)
    assert value == pytest.approx(kl, rel=1e-12)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_k2_has_the_gradient_of_the_kl_and_nearly_its_value():
    (value, kl, _), (gradient, expected, other) = enumerated(kl_k2)
    assert value != pytest.approx(kl, rel=0.01)
    torch.testing.assert_close(gradient, expected)
    assert not torch.allclose(gradient, other, rtol=0.1)


def test_k3_tells_the_value_and_has_the_gradient_of_the_other_direction():
    (value, kl, _), (gradient, other, expected) = enumerated(kl_k3)
    assert value == pytest.approx(kl, rel=1e-12)
    torch.testing.assert_close(gradient, expected)
    assert not torch.allclose(gradient, other, rtol=0.1)


def test_the_bias_of_k2_is_of_the_third_order():
    """Ten times closer, it is a thousand times smaller."""
    biases = []
    for scale in (1e-2, 1e-3):
        (value, kl, _), _ = enumerated(kl_k2, scale)
        biases.append(value - kl)
    assert biases[0] / biases[1] == pytest.approx(1000, rel=0.1)


def test_float32_keeps_the_digits_of_close_tokens():
    p, q = np.float32([-1.0, -3.0]), np.float32([-1.0 + 2**-12, -3.0 - 2**-11])
    u = q.astype(np.float64) - p
    np.testing.assert_allclose(kl_k3(p, q), u**2 / 2 + u**3 / 6 + u**4 / 24, rtol=1e-6)


def test_16_bit_log_probabilities_are_computed_in_float32():
    p = torch.tensor(P_LOG, dtype=torch.bfloat16)
    assert kl_k3(p, p).dtype == torch.float32
    assert kl_k3(p, p).eq(0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_tokens(dtype):
    """The reference gives up a token: ±1e4 nats. It is infinite only where r is."""
    p, far = np.zeros(1, dtype), np.full(1, -1e4, dtype)
    assert kl_k1(p, far).tolist() == [1e4]
    assert kl_k2(p, far).tolist() == [5e7]
    assert kl_k3(p, far).tolist() == [9999.0]
    assert kl_k3(p, np.full(1, -math.inf, dtype)).tolist() == [math.inf]
    far, p = (torch.tensor(row, requires_grad=True) for row in (far, p))
    assert kl_k3(far, p).item() == math.inf
    (gradient,) = torch.autograd.grad(kl_k3(p, far).sum(), p)
    assert gradient.tolist() == [1.0]


@every_estimator
def test_shapes_must_be_equal(ours):
    with pytest.raises(ShapeError, match=r"log_probs \(2,\), reference_log_probs \(1,\)"):
        ours(np.zeros(2), np.zeros(1))


nats = st.floats(-50, 0)


@given(nats, nats)
def test_laws(p, q):
    assert kl_k1(p, q) == -kl_k1(q, p)
    assert kl_k2(p, q) == kl_k2(q, p) >= 0
    assert kl_k3(p, q) >= 0
    assert kl_k3(p, p) == kl_k2(p, p) == kl_k1(p, p) == 0
    # φ(u) + φ(−u) = 2 (cosh u − 1) = 4 sinh²(u/2).
    total = kl_k3(p, q) + kl_k3(q, p)
    assert total == pytest.approx(4 * math.sinh((p - q) / 2) ** 2, rel=1e-12, abs=1e-300)
