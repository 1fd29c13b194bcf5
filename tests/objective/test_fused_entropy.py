from __future__ import annotations

import math

import pytest
import torch
from fused_cases import HEAD, SHAPE, Case, Problem, V, assert_same, distance, pairwise, product
from fused_cases import poisoned as poisoned
from torch.distributions import Categorical

from tunemath.objective import adjusted_logits, entropy
from tunemath.objective.fused import linear_entropy

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def fused(problem, **options):
    form = problem.form | options
    return linear_entropy(problem.hidden, problem.head, problem.mask, **form)


def textbook(z):
    return Categorical(logits=z).entropy()


def check(case):
    problem = Problem(case)
    expected = problem.spread(textbook(problem.logits()))
    got = fused(problem)
    assert got.dtype == case.dtype
    assert bool(((got >= 0) & (got <= math.log(V) * (1 + 1e-6))).all())
    assert not got[~problem.selected].any()
    tolerance = TOLERANCE[case.dtype] * (10 if case.deep else 1)
    floor = 1e-3 if case.deep else 1e-12
    assert_same(got, expected, problem.leaves, problem.upstream, tolerance, floor)
    with torch.no_grad():
        assert distance(fused(problem), expected, floor) < tolerance


@pytest.mark.parametrize("case", pairwise(**HEAD), ids=str)
def test_values_and_gradients_are_those_of_a_categorical(case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HEAD["dtype"])
def test_every_combination_of_options(dtype):
    for case in product(**(HEAD | {"dtype": (dtype,)})):
        check(case)


@pytest.mark.parametrize("soft_cap", [None, 7.0])
def test_it_is_the_pure_function_of_the_logits(soft_cap):
    problem = Problem(Case(bias=True, trained=True, soft_cap=soft_cap, mask=False))
    z = problem.hidden @ problem.head.T + problem.bias
    expected = entropy(adjusted_logits(z, scale=problem.scale, soft_cap=soft_cap))
    assert_same(fused(problem), expected, problem.leaves, problem.upstream, 1e-12)


def test_hand_computed():
    # p = (3/4, 1/4); a fair choice of 3; and a certain one.
    head = torch.tensor([[math.log(3.0)], [0.0]])
    got = linear_entropy(torch.tensor([[1.0], [0.0], [500.0]]), head)
    expected = [2 * math.log(2) - 0.75 * math.log(3), math.log(2), 0.0]
    assert got.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_limits_are_zero_and_log_v():
    hidden = torch.ones(2, 1, dtype=torch.float64)
    assert linear_entropy(hidden, torch.zeros(V, 1)).tolist() == pytest.approx([math.log(V)] * 2)
    certain = torch.zeros(V, 1, dtype=torch.float64)
    certain[7] = 1e4
    assert linear_entropy(hidden, certain).tolist() == [0.0, 0.0]


def test_an_almost_certain_row_keeps_its_digits_in_float32():
    # All others together have 1e-9 of the probability.
    hidden = torch.tensor([[27.63102, 0.5]], requires_grad=True)
    head = torch.zeros(1000, 2)
    head[3, 0] = 1.0
    rest = 999 * torch.exp(-hidden[:, 0].double())
    expected = torch.log1p(rest) + rest / (1 + rest) * hidden[:, 0].double()
    assert expected.item() == pytest.approx(1e-9 * 28.6, rel=0.01)
    got = linear_entropy(hidden, head)
    assert_same(got, expected, {"hidden": hidden}, tolerance=1e-5)
    for chunk in (None, 1):
        assert distance(linear_entropy(hidden.detach(), head, chunk=chunk), expected) < 1e-5
    assert distance(textbook(hidden @ head.T), expected) > 0.01


@pytest.mark.parametrize("dtype", HEAD["dtype"])
@pytest.mark.parametrize("trained", [False, True])
def test_logits_of_ten_thousand_stay_finite(trained, dtype):
    problem = Problem(Case(dtype=dtype, trained=trained, mask=False))
    with torch.no_grad():
        problem.hidden.zero_()[..., 0] = torch.linspace(-1e4, 1e4, 33).view(SHAPE)
        problem.head[:, 0] = torch.linspace(-1.0, 1.0, V)
    expected = textbook(problem.logits() / problem.scale).view(SHAPE)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4}[dtype]
    for chunk in (None, 1):
        got = fused(problem, scale=1.0, chunk=chunk)
        assert_same(got, expected, problem.leaves, tolerance=tolerance)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("gone", [torch.arange(V) % 3 == 1, torch.arange(V) < 400])
def test_a_token_that_cannot_occur_is_as_if_it_were_not_there(gone, trained):
    problem = Problem(Case(bias=True, trained=trained))
    with torch.no_grad():
        problem.bias[gone] = -math.inf
    for chunk in (None, 1):
        got = fused(problem, chunk=chunk)
        shorter = problem.form | {"bias": problem.bias[~gone]}
        expected = linear_entropy(problem.hidden, problem.head[~gone], problem.mask, **shorter)
        assert_same(got, expected, problem.leaves, problem.upstream)


@pytest.mark.parametrize("trained", [False, True])
def test_masked_is_compressed_and_what_is_masked_out_leaves_no_trace(trained):
    problem = Problem(Case(bias=True, lora="trained", trained=trained))
    mask, leaves = problem.mask, list(problem.leaves.values())
    compact = linear_entropy(problem.hidden[mask], problem.head, **problem.form)
    expected = torch.autograd.grad(compact.sum(), leaves)
    for rubbish in (math.nan, math.inf, 1e30):
        hidden = problem.hidden.masked_fill(~mask[..., None], rubbish)
        got = linear_entropy(hidden, problem.head, mask, **problem.form)
        assert torch.equal(got[mask], compact)
        grads = torch.autograd.grad(got.sum(), leaves)
        assert all(map(torch.equal, grads, expected))
    nothing = linear_entropy(problem.hidden, problem.head, torch.zeros_like(mask))
    assert not nothing.any()


@pytest.mark.parametrize("chunk", [1, 7, 2999, V * 33, 10**9])
@pytest.mark.parametrize("trained", [False, True])
def test_chunk_and_the_order_of_rows_change_nothing(chunk, trained):
    problem = Problem(Case(trained=trained, soft_cap=7.0, mask=False))
    whole = fused(problem)
    assert_same(fused(problem, chunk=chunk), whole, problem.leaves, problem.upstream)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    form = problem.form | {"chunk": chunk}
    shuffled = linear_entropy(problem.hidden.flatten(0, 1)[order], problem.head, **form)
    upstream = problem.upstream.flatten()[order]
    assert_same(shuffled, whole.flatten()[order], problem.leaves, upstream)


def test_half_precision():
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 16, generator=draw).bfloat16().requires_grad_()
    head = torch.randn(V, 16, generator=draw).bfloat16()
    got = linear_entropy(hidden, head)
    assert got.dtype == torch.float32
    expected = textbook(hidden.double() @ head.double().T)
    assert_same(got, expected, {"hidden": hidden}, tolerance=2e-2)
    exact = hidden.detach().float().requires_grad_()
    expected = textbook(exact.double() @ head.double().T)
    assert_same(linear_entropy(exact, head), expected, {"hidden": exact}, tolerance=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype):
    problem = Problem(Case(dtype=torch.float32))
    hidden = problem.hidden.detach().to("cuda", dtype).requires_grad_()
    head, mask = problem.head.to("cuda", dtype), problem.mask.cuda()
    got = linear_entropy(hidden, head, mask)
    expected = textbook(hidden[mask].double() @ head.double().T)
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    assert_same(got[mask], expected, {"hidden": hidden}, tolerance=tolerance)
