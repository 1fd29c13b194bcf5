"""The divergences while a compiler or vmap traces, where no value can be looked at."""

from __future__ import annotations

import math
from functools import partial

import jax
import numpy as np
import pytest
import scipy.special
import torch
from libraries import LIBRARIES, same

from tunemath.objective.divergence import (
    alpha_divergence,
    js_divergence,
    kl_divergence,
    renyi_divergence,
    skewed_kl,
    total_variation,
)

P, Q = scipy.special.softmax(np.random.default_rng(0).normal(size=(2, 3, 5)) * 2, axis=-1)

CASES = {
    "kl": kl_divergence,
    "kl of logs": partial(kl_divergence, log=True),
    "skewed": partial(skewed_kl, skew=0.1, log=True),
    "js": partial(js_divergence, weight=0.125),
    "alpha 0.25": partial(alpha_divergence, alpha=0.25),
    "alpha 3": partial(alpha_divergence, alpha=3, log=True),
    "renyi 0.25": partial(renyi_divergence, alpha=0.25, log=True),
    "renyi inf": partial(renyi_divergence, alpha=math.inf),
    "total variation": partial(total_variation, log=True),
}
every_case = pytest.mark.parametrize("ours", CASES.values(), ids=CASES)


def arguments(ours):
    return (np.log(P), np.log(Q)) if getattr(ours, "keywords", {}).get("log") else (P, Q)


@every_case
def test_jax_gives_value_and_gradient(ours):
    """jax.jit of jax.grad of jax.vmap gives what torch gives eagerly."""
    rows = arguments(ours)
    total = jax.value_and_grad(lambda p, q: jax.vmap(ours)(p, q).sum(), argnums=(0, 1))
    value, gradients = jax.jit(total)(*map(LIBRARIES["jax"], rows))
    leaves = [torch.tensor(row, requires_grad=True) for row in rows]
    expected = ours(*leaves).sum()
    assert float(value) == pytest.approx(expected.item(), rel=1e-13)
    for got, leaf in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        np.testing.assert_allclose(same(got), same(leaf), rtol=1e-12, atol=1e-14)


@every_case
def test_torch_maps_rows_by_vmap(ours):
    p, q = map(torch.tensor, arguments(ours))
    torch.testing.assert_close(torch.func.vmap(ours)(p, q), ours(p, q))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*lru_cache:UserWarning")
@every_case
def test_torch_compiles_without_a_break(ours):
    torch.compiler.reset()
    p, q = map(torch.tensor, arguments(ours))
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(p, q), ours(p, q))
