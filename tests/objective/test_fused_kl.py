from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from fused_cases import HEAD, SHAPE, Case, Problem, V, assert_same, distance, pairwise, product
from fused_cases import poisoned as poisoned
from torch.distributions import Categorical, kl_divergence

from tunemath.objective import kl_from_logits
from tunemath.objective.fused import linear_kl
from tunemath.objective.fused.moments import excess

PAIR = HEAD | {
    "base": ("shared", "own", "narrow"),
    "near": (False, True),
    "direction": ("tuned||base", "base||tuned"),
}
# Logits of hundreds have an error of 1e-4 in float32.
TOLERANCE = {torch.float64: 1e-7, torch.float32: 3e-4}


def kl(problem, **options):
    return linear_kl(
        problem.hidden, problem.base_hidden, problem.head, problem.base_head, problem.mask,
        **({"direction": problem.case.direction, "base_bias": problem.base_bias}
           | problem.form | options),
    )  # fmt: skip


def textbook(tuned, base, direction="tuned||base"):
    """Return Σ p (log p − log q), which is good in float64; kl_divergence gives ∞ where q = 0."""
    log_p, log_q = tuned.log_softmax(-1), base.log_softmax(-1)
    if direction == "base||tuned":
        log_p, log_q = log_q, log_p
    possible = log_p > -math.inf
    gap = torch.where(possible, log_p, 0.0) - torch.where(possible, log_q, 0.0)
    return (log_p.exp() * gap).sum(-1)


def check(case):
    problem = Problem(case)
    expected = problem.spread(textbook(problem.logits(), problem.base_logits(), case.direction))
    got = kl(problem)
    assert got.dtype == case.dtype
    assert bool((got >= 0).all())
    assert not got[~problem.selected].any()
    tolerance = TOLERANCE[case.dtype] * (10 if case.deep else 1)
    floor = 1e-5 if case.deep else 1e-12
    assert_same(got, expected, problem.leaves, problem.upstream, tolerance, floor)
    with torch.no_grad():
        assert distance(kl(problem), expected, floor) < tolerance


@pytest.mark.parametrize("case", pairwise(**PAIR), ids=str)
def test_values_and_gradients_are_those_of_full_logits(case):
    check(case)


@pytest.mark.parametrize("direction", PAIR["direction"])
@pytest.mark.parametrize("base", PAIR["base"])
def test_it_is_torchs_kl_divergence(base, direction):
    problem = Problem(Case(base=base, direction=direction))
    pair = Categorical(logits=problem.logits()), Categorical(logits=problem.base_logits())
    expected = kl_divergence(*(pair if direction == "tuned||base" else pair[::-1]))
    upstream = problem.upstream
    assert_same(kl(problem), problem.spread(expected), problem.leaves, upstream, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("base", PAIR["base"])
@pytest.mark.parametrize("dtype", PAIR["dtype"])
def test_every_combination_of_options(dtype, base):
    for case in product(**(PAIR | {"dtype": (dtype,), "base": (base,)})):
        check(case)


@pytest.mark.parametrize("direction", PAIR["direction"])
@pytest.mark.parametrize("base", PAIR["base"])
def test_it_is_the_pure_function_of_the_logits(base, direction):
    problem = Problem(Case(bias=True, soft_cap=7.0, base=base, near=True, direction=direction))
    order = (problem.logits(), problem.base_logits())
    expected = kl_from_logits(*(order if direction == "tuned||base" else order[::-1]))
    upstream = problem.upstream
    assert_same(kl(problem), problem.spread(expected), problem.leaves, upstream, 1e-9)


def test_hand_computed_and_the_direction_is_in_the_name():
    # p = (3/4, 1/4), q = (1/2, 1/2).
    hidden, base, head = torch.tensor([[math.log(3.0)]]), torch.zeros(1, 1), torch.eye(2)[:, :1]
    tuned_base = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    base_tuned = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert linear_kl(hidden, base, head).item() == pytest.approx(tuned_base)
    for direction, value in (("tuned||base", tuned_base), ("base||tuned", base_tuned)):
        got = linear_kl(hidden, base, head, direction=direction)
        assert got.item() == pytest.approx(value)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.float64, 4e-14)])
@pytest.mark.parametrize("most", [1e-3, 0.05, 0.3, 0.5, 1.0, 1.7, 4.0, 30.0])
def test_the_excess_of_the_exponential_keeps_its_digits(dtype, bound, most):
    u = torch.linspace(-most, most, 4001, dtype=dtype)
    u = u[u != 0]
    found = excess(u, torch.empty_like(u), most=most)
    for x, value in zip(u.tolist()[::97], found.tolist()[::97], strict=True):
        exact = sum(Fraction(x) ** k / math.factorial(k) for k in range(2, 120))
        assert value == pytest.approx(float(exact), rel=bound * (50 if most > 4 else 1))


@pytest.mark.parametrize("soft_cap", [None, 7.0])
def test_the_other_direction_is_the_other_order(soft_cap):
    problem = Problem(Case(soft_cap=soft_cap, base="own"))
    heads = (problem.head, problem.base_head)
    states = (problem.hidden.detach(), problem.base_hidden.detach())
    one = linear_kl(*states, *heads, soft_cap=soft_cap)
    other = linear_kl(*states[::-1], *heads[::-1], direction="base||tuned", soft_cap=soft_cap)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=0)
    back = linear_kl(*states, *heads, direction="base||tuned", soft_cap=soft_cap)
    assert distance(one, back) > 0.01


@pytest.mark.parametrize("dtype", HEAD["dtype"])
@pytest.mark.parametrize("direction", PAIR["direction"])
@pytest.mark.parametrize("soft_cap", [None, 7.0])
@pytest.mark.parametrize("base", ["shared", "own"])
@pytest.mark.parametrize("bias", [False, True])
def test_equal_models_are_exactly_zero_apart(base, bias, soft_cap, direction, dtype):
    problem = Problem(
        Case(bias=bias, base=base, soft_cap=soft_cap, direction=direction, dtype=dtype)
    )
    problem.base_hidden = problem.hidden.detach()
    if base == "own":
        problem.base_head, problem.base_bias = problem.head, problem.bias
    got = kl(problem)
    assert not got.any()
    (gradient,) = torch.autograd.grad(got.sum(), problem.hidden)
    # p − q cancels to the rounding of E_p[d] = 0; −p·u is exactly 0.
    assert gradient.abs().max() < torch.finfo(dtype).eps * 100
    with torch.no_grad():
        assert not kl(problem).any()


@pytest.mark.parametrize("nats", [1e-2, 2e-3, 1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("base", ["shared", "own"])
@pytest.mark.parametrize("direction", PAIR["direction"])
def test_float32_keeps_the_digits_of_a_small_movement(nats, base, direction):
    draw = torch.Generator().manual_seed(0)
    head = torch.randn(2000, 64, generator=draw) / 8
    hidden = 3 * torch.randn(20, 64, generator=draw)
    change = math.sqrt(nats) * (1.0 if base == "own" else 1.4)
    base_hidden = hidden + change * torch.randn(20, 64, generator=draw)
    base_head = head + change / 24 * torch.randn(2000, 64, generator=draw)
    base_head = base_head if base == "own" else None
    hidden.requires_grad_()
    z = hidden.double() @ head.double().T
    z_base = base_hidden.double() @ (head if base_head is None else base_head).double().T
    expected = textbook(z, z_base, direction)
    assert 0.2 * nats < expected.min() < expected.max() < 5 * nats

    def error(value):
        return ((value.double() - expected) / expected).abs().max().item()

    allowed = 1e-4 if nats > 1e-7 else 1e-3
    got = linear_kl(hidden, base_hidden, head, base_head, direction=direction)
    assert error(got) < allowed
    assert_same(got, expected, {"hidden": hidden}, tolerance=allowed)
    with torch.no_grad():
        quick = linear_kl(hidden, base_hidden, head, base_head, direction=direction)
    assert error(quick) < allowed
    if nats < 1e-5:
        assert error(textbook(z.float(), z_base.float(), direction)) > 0.1


@pytest.mark.parametrize("direction", PAIR["direction"])
@pytest.mark.parametrize("certain", [False, True])
@pytest.mark.parametrize("chunk", [None, 1 << 19])
def test_two_heads_and_rows_of_every_movement(certain, direction, chunk):
    # More than a block of them; most move so far that their logits' difference will do.
    n = 1300
    draw = torch.Generator().manual_seed(0)
    head = torch.randn(1500, 64, generator=draw) / 8
    base_head = head + 1e-4 * torch.randn(1500, 64, generator=draw)
    hidden = 3 * torch.randn(n, 64, generator=draw)
    if certain:
        token = torch.randint(1500, (n,), generator=draw)
        hidden += torch.linspace(0.0, 25.0, n)[:, None] * head[token]
    size = torch.logspace(-3, 0.5, n)[torch.randperm(n, generator=draw), None]
    base_hidden = hidden + size * torch.randn(n, 64, generator=draw)
    z, z_base = hidden.double() @ head.double().T, base_hidden.double() @ base_head.double().T
    expected = textbook(z, z_base, direction)
    assert expected.min() < 1e-6
    assert expected.max() > 1.0
    got = linear_kl(hidden, base_hidden, head, base_head, direction=direction, chunk=chunk)
    assert bool((got > 0).all())
    # As float64's log-softmax of logits near 30 is good to 1e-14 itself.
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-13)


@pytest.mark.parametrize("direction", PAIR["direction"])
@pytest.mark.parametrize("base", PAIR["base"])
@pytest.mark.parametrize("dtype", HEAD["dtype"])
def test_logits_of_ten_thousand_stay_finite(dtype, base, direction):
    problem = Problem(Case(dtype=dtype, base=base, direction=direction, mask=False))
    with torch.no_grad():
        problem.hidden.zero_()[..., 0] = torch.linspace(-1e4, 1e4, 33).view(SHAPE)
        problem.head[:, 0] = torch.linspace(-1.0, 1.0, V)
        problem.base_hidden[0] *= 1e3
    z, y = problem.logits() / problem.scale, problem.base_logits() / problem.scale
    expected = textbook(z, y, direction).view(SHAPE)
    assert expected.max() > 500
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4}[dtype]
    for chunk in (None, 1):
        got = kl(problem, scale=1.0, chunk=chunk)
        assert_same(got, expected, problem.leaves, tolerance=tolerance)
        with torch.no_grad():
            assert distance(kl(problem, scale=1.0, chunk=chunk), expected) < tolerance


@pytest.mark.parametrize("direction", PAIR["direction"])
@pytest.mark.parametrize("base", ["shared", "own"])
def test_a_token_that_neither_can_say_is_as_if_it_were_not_there(base, direction):
    problem = Problem(Case(bias=True, base=base, direction=direction, trained=base == "own"))
    gone = torch.arange(V) % 3 == 1
    with torch.no_grad():
        problem.bias[gone] = -math.inf
        if problem.base_bias is not None:
            problem.base_bias[gone] = -math.inf
    got = kl(problem)
    with torch.no_grad():
        quick = kl(problem)
    whole = problem.head, problem.bias
    problem.head, problem.bias = whole[0][~gone], whole[1][~gone]
    if base == "own":
        problem.base_head, problem.base_bias = problem.base_head[~gone], problem.base_bias[~gone]
    expected = kl(problem)
    assert_same(got, expected, problem.leaves, problem.upstream)
    assert distance(quick, expected) < 1e-9


def test_a_first_tile_of_tokens_that_neither_can_say():
    draw = torch.Generator().manual_seed(0)
    hidden, base_hidden = torch.randn(2, 20, 8, dtype=torch.float64, generator=draw)
    head, base_head = torch.randn(2, 700, 8, dtype=torch.float64, generator=draw)
    bias = torch.randn(700, dtype=torch.float64, generator=draw)
    bias[:300] = -math.inf
    got = linear_kl(
        hidden, base_hidden, head, base_head, bias=bias, base_bias=bias, chunk=1
    )  # tiles of 256 tokens
    z, z_base = hidden @ head[300:].T + bias[300:], base_hidden @ base_head[300:].T + bias[300:]
    torch.testing.assert_close(got, textbook(z, z_base))


@pytest.mark.parametrize("grad", [False, True])
def test_a_token_that_only_one_can_say(grad):
    problem = Problem(Case(bias=True, base="own", mask=False))
    problem.base_bias[5] = -math.inf
    problem.hidden.requires_grad_(grad)
    assert bool((kl(problem) == math.inf).all())
    with torch.no_grad():
        expected = problem.spread(textbook(problem.logits(), problem.base_logits(), "base||tuned"))
    torch.testing.assert_close(kl(problem, direction="base||tuned"), expected)


@pytest.mark.parametrize("base", PAIR["base"])
def test_masked_is_compressed_and_what_is_masked_out_leaves_no_trace(base):
    problem = Problem(Case(bias=True, lora="trained", trained=base != "shared", base=base))
    mask, leaves = problem.mask, list(problem.leaves.values())
    form = problem.form | {"base_bias": problem.base_bias}
    states, heads = (problem.hidden, problem.base_hidden), (problem.head, problem.base_head)
    compact = linear_kl(*(one[mask] for one in states), *heads, **form)
    expected = torch.autograd.grad(compact.sum(), leaves)
    for rubbish in (math.nan, math.inf, 1e30):
        hidden, base_hidden = (one.masked_fill(~mask[..., None], rubbish) for one in states)
        got = linear_kl(hidden, base_hidden, *heads, mask, **form)
        assert torch.equal(got[mask], compact)
        grads = torch.autograd.grad(got.sum(), leaves)
        assert all(map(torch.equal, grads, expected))
    nothing = linear_kl(*states, *heads, torch.zeros_like(mask), **form)
    assert not nothing.any()


@pytest.mark.parametrize("chunk", [1, 7, 2999, V * 33, 10**9])
@pytest.mark.parametrize("base", PAIR["base"])
def test_chunk_and_the_order_of_rows_change_nothing(chunk, base):
    problem = Problem(Case(base=base, trained=base != "shared", soft_cap=7.0, mask=False))
    whole = kl(problem)
    assert_same(kl(problem, chunk=chunk), whole, problem.leaves, problem.upstream)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    shuffled = linear_kl(
        problem.hidden.flatten(0, 1)[order], problem.base_hidden.flatten(0, 1)[order],
        problem.head, problem.base_head, **(problem.form | {"chunk": chunk}),
    )  # fmt: skip
    upstream = problem.upstream.flatten()[order]
    assert_same(shuffled, whole.flatten()[order], problem.leaves, upstream)


@pytest.mark.parametrize("base", ["shared", "own"])
def test_more_rows_than_a_block_holds(base):
    draw = torch.Generator().manual_seed(0)
    hidden, base_hidden = torch.randn(2, 2500, 8, dtype=torch.float64, generator=draw)
    head = torch.randn(90, 8, dtype=torch.float64, generator=draw)
    base_head = None if base == "shared" else head * 1.01
    hidden.requires_grad_()
    expected = textbook(hidden @ head.T, base_hidden @ (head if base_head is None else base_head).T)
    upstream = torch.linspace(-1, 1, 2500, dtype=torch.float64)
    for chunk in (None, 9000):
        got = linear_kl(hidden, base_hidden, head, base_head, chunk=chunk)
        assert_same(got, expected, {"hidden": hidden}, upstream)


def test_the_base_is_a_constant():
    problem = Problem(Case(bias=True, base="own", trained=True))
    constants = (problem.base_hidden, problem.base_head, problem.base_bias)
    for one in constants:
        one.requires_grad_()
    grads = torch.autograd.grad(kl(problem).sum(), constants, allow_unused=True)
    assert grads == (None, None, None)


@pytest.mark.parametrize("base", ["shared", "own"])
def test_half_precision(base):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 16, generator=draw).bfloat16()
    base_hidden = (hidden.float() + 0.3 * torch.randn(9, 16, generator=draw)).bfloat16()
    head = torch.randn(V, 16, generator=draw).bfloat16()
    base_head = None if base == "shared" else (head.float() * 1.02).bfloat16()
    hidden.requires_grad_()
    z = hidden.double() @ head.double().T
    z_base = base_hidden.double() @ (head if base_head is None else base_head).double().T
    got = linear_kl(hidden, base_hidden, head, base_head)
    assert got.dtype == torch.float32
    assert_same(got, textbook(z, z_base), {"hidden": hidden}, tolerance=2e-2)
    # A half-precision head under float32 states is multiplied exactly.
    exact = hidden.detach().float().requires_grad_()
    z = exact.double() @ head.double().T
    got = linear_kl(exact, base_hidden.float(), head, base_head)
    assert_same(got, textbook(z, z_base), {"hidden": exact}, tolerance=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base", PAIR["base"])
def test_on_a_gpu(dtype, base):
    problem = Problem(Case(dtype=torch.float32, base=base))

    def moved(one):
        return None if one is None else one.detach().to("cuda", dtype)

    hidden, base_hidden = moved(problem.hidden).requires_grad_(), moved(problem.base_hidden)
    head, base_head = moved(problem.head), moved(problem.base_head)
    mask = problem.mask.cuda()
    z = hidden[mask].double() @ head.double().T
    y = base_hidden[mask].double() @ (head if base_head is None else base_head).double().T
    got = linear_kl(hidden, base_hidden, head, base_head, mask)
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    assert_same(got[mask], textbook(z, y), {"hidden": hidden}, tolerance=tolerance)
