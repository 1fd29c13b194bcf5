from __future__ import annotations

import math

import pytest
import torch
from fused_cases import (
    HEAD,
    SHAPE,
    Case,
    Problem,
    V,
    assert_same,
    distance,
    losses,
    pairwise,
    product,
    summed,
)
from fused_cases import poisoned as poisoned
from torch.distributions import Categorical
from torch.nn.functional import cross_entropy as torch_cross_entropy

from tunemath.objective import (
    adjusted_logits,
    cross_entropy,
    masked_sum,
    pooled_mean,
    token_log_probs,
)
from tunemath.objective.fused import Lora, linear_cross_entropy, linear_token_log_probs

LOSS = HEAD | {
    "label_smoothing": (0.0, 0.1),
    "z_loss": (0.0, 0.01),
    "weights": (False, True),
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}


def check_sum(case):
    problem = Problem(case)
    z = problem.logits()
    nll = torch_cross_entropy(
        z, problem.ids, reduction="none", label_smoothing=case.label_smoothing
    )
    loss = nll + case.z_loss * z.logsumexp(-1) ** 2
    if problem.weights is not None:
        loss = loss * problem.weights[problem.selected].double()
    total, weight = linear_cross_entropy(
        problem.hidden, problem.head, problem.targets, problem.mask, weights=problem.weights,
        label_smoothing=case.label_smoothing, z_loss=case.z_loss, **problem.form,
    )  # fmt: skip
    whole = problem.selected if problem.weights is None else problem.weights[problem.selected]
    assert total.shape == weight.shape == ()
    assert total.dtype == case.dtype
    torch.testing.assert_close(weight, whole.sum())
    assert_same(total, loss.sum(), problem.leaves, 2.0, TOLERANCE[case.dtype])


def check_tokens(case):
    problem = Problem(case)
    got = linear_token_log_probs(
        problem.hidden, problem.head, problem.targets, problem.mask, **problem.form
    )
    assert got.dtype == case.dtype
    assert not got[~problem.selected].any()
    expected = problem.spread(Categorical(logits=problem.logits()).log_prob(problem.ids))
    assert_same(got, expected, problem.leaves, problem.upstream, TOLERANCE[case.dtype])


@pytest.mark.parametrize("case", pairwise(**LOSS), ids=str)
def test_the_sum_and_its_gradients_are_those_of_full_logits(case):
    check_sum(case)


@pytest.mark.parametrize("case", pairwise(**HEAD), ids=str)
def test_log_probs_and_their_gradients_are_those_of_a_categorical(case):
    check_tokens(case)


@pytest.mark.slow
@pytest.mark.parametrize("trained", HEAD["trained"])
@pytest.mark.parametrize("dtype", HEAD["dtype"])
def test_every_combination_of_options(dtype, trained):
    for case in product(**(LOSS | {"dtype": (dtype,), "trained": (trained,)})):
        check_sum(case)
    for case in product(**(HEAD | {"dtype": (dtype,), "trained": (trained,)})):
        check_tokens(case)


@pytest.mark.parametrize("soft_cap", [None, 7.0])
@pytest.mark.parametrize("trained", [False, True])
def test_they_are_the_pure_functions_of_the_logits(trained, soft_cap):
    problem = Problem(Case(bias=True, soft_cap=soft_cap, trained=trained))
    ids = problem.targets.clamp(min=0)
    z = problem.hidden @ problem.head.T + problem.bias
    z = adjusted_logits(z, scale=problem.scale, soft_cap=soft_cap)
    arguments = (problem.hidden, problem.head, problem.targets, problem.mask)
    for options in ({}, {"label_smoothing": 0.1, "z_loss": 0.01}):
        total, count = linear_cross_entropy(*arguments, **problem.form, **options)
        loss, weight = masked_sum(cross_entropy(z, ids, **options), problem.mask)
        assert count == weight
        assert_same(total, loss, problem.leaves, tolerance=1e-12)
    got = linear_token_log_probs(*arguments, **problem.form)
    expected = torch.where(problem.selected, token_log_probs(z, ids), 0.0)
    assert_same(got, expected, problem.leaves, problem.upstream, tolerance=1e-12)


def test_a_token_that_cannot_occur_stays_so_under_a_cap():
    hidden, head = torch.eye(3), torch.eye(3)
    bias, ids = torch.tensor([0.0, -math.inf, 0.0]), torch.tensor([0, 2, 0])
    expected = token_log_probs(adjusted_logits(hidden @ head.T + bias, soft_cap=5.0), ids)
    got = linear_token_log_probs(hidden, head, ids, bias=bias, soft_cap=5.0)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("function", [summed, losses])
def test_masked_is_compressed_and_what_is_masked_out_leaves_no_trace(function, trained):
    problem = Problem(Case(bias=True, lora="trained", trained=trained, mask=True))
    mask, leaves = problem.mask, list(problem.leaves.values())
    compact = function(problem.hidden[mask], problem.head, problem.ids, **problem.form)
    expected = torch.autograd.grad(compact.sum(), leaves)
    for rubbish, junk in ((math.nan, -100), (math.inf, V + 7), (1e30, -(2**40))):
        hidden = problem.hidden.masked_fill(~mask[..., None], rubbish)
        targets = problem.targets.masked_fill(~mask, junk)
        got = function(hidden, problem.head, targets, mask, **problem.form)
        assert torch.equal(got if got.ndim == 0 else got[mask], compact)
        grads = torch.autograd.grad(got.sum(), leaves)
        assert all(map(torch.equal, grads, expected))
        assert not grads[0][~mask].any()


def test_weights_are_those_of_the_sum_and_rubbish_where_the_mask_is_off():
    problem = Problem(Case(weights=True, trained=True))
    weights = problem.weights.masked_fill(~problem.mask, math.nan)
    arguments = (problem.hidden, problem.head, problem.targets, problem.mask)
    total, weight = linear_cross_entropy(*arguments, weights=weights, **problem.form)
    tokens = losses(*arguments, **problem.form)[problem.mask] * weights[problem.mask]
    assert_same(total, tokens.sum(), problem.leaves)
    assert weight == weights[problem.mask].sum()
    # A row of weight 2 is the row twice, and one of weight 0 is no row.
    hidden, ids = problem.hidden[problem.mask], problem.ids
    counts = torch.tensor([2.0, 0.0, 1.0] * len(ids))[: len(ids)].double()
    total, weight = linear_cross_entropy(hidden, problem.head, ids, weights=counts)
    often = torch.repeat_interleave(torch.arange(len(ids)), counts.long())
    repeated, count = linear_cross_entropy(hidden[often], problem.head, ids[often])
    assert weight == count
    assert_same(total, repeated, problem.leaves)


@pytest.mark.parametrize("chunk", [1, 7, 300, 4096, V * 33, 10**9])
@pytest.mark.parametrize("trained", [False, True])
def test_chunk_changes_nothing(chunk, trained):
    case = Case(bias=True, soft_cap=7.0, label_smoothing=0.1, trained=trained, mask=False)
    problem = Problem(case)
    form = problem.form | {"label_smoothing": 0.1, "z_loss": 0.1}
    arguments = (problem.hidden, problem.head, problem.targets)
    whole = summed(*arguments, **form)
    assert_same(summed(*arguments, **(form | {"chunk": chunk})), whole, problem.leaves)


@pytest.mark.parametrize("size", [1, 5, 20, 33])
@pytest.mark.parametrize("trained", [False, True])
def test_neither_the_cut_of_the_batch_nor_the_order_of_its_rows_matters(size, trained):
    problem = Problem(Case(trained=trained, weights=True))
    every = [one.flatten(0, 1) for one in (problem.hidden, problem.targets, problem.mask)]
    weights = problem.weights.flatten()

    def over(rows):
        hidden, targets, mask = (one[rows] for one in every)
        return linear_cross_entropy(hidden, problem.head, targets, mask, weights=weights[rows])

    whole = over(slice(None))
    parts = [over(slice(start, start + size)) for start in range(0, 33, size)]
    assert_same(sum(total for total, _ in parts), whole[0], problem.leaves)
    torch.testing.assert_close(pooled_mean(parts), whole[0] / whole[1])
    shuffled = over(torch.randperm(33, generator=torch.Generator().manual_seed(0)))
    assert_same(shuffled[0], whole[0], problem.leaves)


def test_more_rows_than_a_block_holds():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2500, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    head = torch.randn(90, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randint(90, (2500,), generator=generator)
    expected = torch_cross_entropy(hidden @ head.T, targets, reduction="none")
    for leaves in ({"hidden": hidden}, {"hidden": hidden, "head": head}):
        head.requires_grad_("head" in leaves)
        for chunk in (None, 9000):
            got = summed(hidden, head, targets, chunk=chunk)
            assert_same(got, expected.sum(), leaves)
            got = losses(hidden, head, targets, chunk=chunk)
            upstream = torch.linspace(-1, 1, 2500, dtype=torch.float64)
            assert_same(got, expected, leaves, upstream)


WAITING = {
    "plain": {},
    "bias": {"bias": True},
    "lora": {"lora": True},
    "smoothed": {"label_smoothing": 0.1, "z_loss": 0.01},
    "capped": {"soft_cap": 7.0},
    "deep": {"deep": True},
}


@pytest.mark.parametrize("options", WAITING.values(), ids=WAITING)
@pytest.mark.parametrize(("rows", "chunk"), [(3, None), (16, None), (16, 1), (40, 9000)])
def test_logits_that_wait_where_the_heads_gradient_will_be(rows, chunk, options):
    """Up to D = 16 rows of 700 tokens, in three tiles, the last of them a narrower one."""
    draw = torch.Generator().manual_seed(rows)
    given = dict(options)
    hidden, head, bias, A, B = (
        torch.randn(*shape, dtype=torch.float64, generator=draw)
        for shape in ((rows, 16), (V, 16), (V,), (4, 16), (V, 4))
    )
    if given.pop("deep", False):
        hidden[::2] *= 60.0
    leaves = {"hidden": hidden, "head": head}
    for leaf in leaves.values():
        leaf.requires_grad_()
    weight = head
    if given.pop("lora", False):
        given["lora"] = Lora(A.requires_grad_(), B.requires_grad_(), 0.5)
        leaves |= {"A": A, "B": B}
        weight = head + 0.5 * B @ A
    z = hidden @ weight.T
    if given.pop("bias", False):
        given["bias"] = leaves["bias"] = bias.requires_grad_()
        z = z + bias
    if "soft_cap" in given:
        z = given["soft_cap"] * torch.tanh(z / given["soft_cap"])
    targets = torch.randint(V, (rows,), generator=draw)
    smoothing = given.get("label_smoothing", 0.0)
    expected = torch_cross_entropy(z, targets, reduction="sum", label_smoothing=smoothing)
    expected = expected + given.get("z_loss", 0.0) * (z.logsumexp(-1) ** 2).sum()
    got = summed(hidden, head, targets, chunk=chunk, **given)
    assert_same(got, expected, leaves)


def test_nothing_selected_gives_a_sum_and_a_weight_of_zero():
    problem = Problem(Case())
    nothing = torch.zeros(SHAPE, dtype=torch.bool)
    arguments = (problem.hidden, problem.head, problem.targets, nothing)
    total, weight = linear_cross_entropy(*arguments)
    assert (total.item(), weight.item()) == (0.0, 0)
    (gradient,) = torch.autograd.grad(total, problem.hidden)
    assert not gradient.any()
    assert not linear_token_log_probs(*arguments).any()
    assert int(linear_cross_entropy(*arguments, weights=torch.ones(SHAPE))[1]) == 0
    none = linear_token_log_probs(torch.zeros(0, 4), torch.eye(4), torch.zeros(0).long())
    assert none.shape == (0,)


@pytest.mark.parametrize("function", [summed, losses])
def test_nothing_selected_leaves_a_trained_head_alone(function):
    problem = Problem(Case(bias=True, lora="trained", trained=True))
    nothing = torch.zeros(SHAPE, dtype=torch.bool)
    got = function(problem.hidden, problem.head, problem.targets, nothing, **problem.form)
    for gradient in torch.autograd.grad(got.sum(), list(problem.leaves.values())):
        assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-4}])
def test_logits_of_ten_thousand_stay_finite(options, trained, dtype):
    problem = Problem(Case(dtype=dtype, trained=trained, mask=False))
    with torch.no_grad():
        problem.hidden.zero_()[..., 0] = torch.linspace(-1e4, 1e4, 33).view(SHAPE)
        problem.head[:, 0] = torch.linspace(-1.0, 1.0, V)
    z = problem.logits() / problem.scale
    nll = torch_cross_entropy(
        z, problem.ids, reduction="none", label_smoothing=options.get("label_smoothing", 0.0)
    )
    assert nll.max() > 5000
    loss = nll + options.get("z_loss", 0.0) * z.logsumexp(-1) ** 2
    arguments = (problem.hidden, problem.head, problem.targets)
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-4}[dtype]
    for chunk in (None, 1):
        got = summed(*arguments, chunk=chunk, **options)
        assert_same(got, loss.sum(), problem.leaves, tolerance=tolerance)
        if not options:
            tokens = losses(*arguments, chunk=chunk)
            assert_same(tokens, nll.view(SHAPE), problem.leaves, tolerance=tolerance)


@pytest.mark.parametrize("function", [summed, losses])
@pytest.mark.parametrize("trained", [False, True])
def test_a_token_that_cannot_occur_is_as_if_it_were_not_there(function, trained):
    problem = Problem(Case(bias=True, trained=trained, mask=False))
    gone = torch.arange(V) % 3 == 1
    with torch.no_grad():
        problem.bias[gone] = -math.inf
        problem.targets[problem.targets % 3 == 1] += 1
    shorter = problem.form | {"bias": problem.bias[~gone]}
    ids = (torch.cumsum(~gone, 0) - 1)[problem.targets]
    expected = function(problem.hidden, problem.head[~gone], ids, **shorter)
    got = function(problem.hidden, problem.head, problem.targets, **problem.form)
    assert_same(got, expected, problem.leaves)
    assert got.detach().sum() < math.inf


def test_a_target_that_cannot_occur_costs_infinity():
    head = torch.eye(3)
    bias = torch.tensor([0.0, -math.inf, 0.0])
    got = linear_token_log_probs(torch.ones(2, 3), head, torch.tensor([1, 0]), bias=bias)
    assert got.tolist() == [-math.inf, pytest.approx(-math.log(2))]


@pytest.mark.parametrize("function", [summed, losses])
@pytest.mark.parametrize("trained", [False, True])
def test_an_almost_certain_target_keeps_its_digits_in_float32(function, trained):
    # p = 1 − 1e-9, so that the loss is 1e-9: log(1 + 999·e^−z) with the others' logits 0.
    hidden = torch.tensor([[27.63102, 0.5]], requires_grad=True)
    head = torch.zeros(1000, 2)
    head[3, 0] = 1.0
    head.requires_grad_(trained)
    leaves = {"hidden": hidden} | ({"head": head} if trained else {})
    target = torch.tensor([3])
    z = hidden.double() @ head.double().T
    loss = torch.log1p((z - z[:, 3:4]).exp().sum(-1) - 1.0)
    assert loss.item() == pytest.approx(999e-12, rel=1e-5, abs=0)
    assert_same(function(hidden, head, target), loss.view(-1), leaves, tolerance=1e-5)
    # PyTorch's own float32 has neither the loss nor the target's part of the gradient.
    assert torch_cross_entropy(hidden @ head.T, target) == 0.0
    logits = (hidden @ head.T).detach().requires_grad_()
    (slope,) = torch.autograd.grad(torch_cross_entropy(logits, target), logits)
    assert slope[0, 3] == 0.0


def test_hand_computed():
    hidden, head = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    total, weight = linear_cross_entropy(hidden, head, torch.tensor([0]))
    assert total.item() == pytest.approx(math.log(1 + math.e))
    assert weight.item() == 1
    total, _ = linear_cross_entropy(hidden, head, torch.tensor([0]), scale=2.0, z_loss=0.5)
    log_z = math.log(math.exp(4) + math.exp(6))
    assert total.item() == pytest.approx(log_z - 4 + 0.5 * log_z**2)
    total, _ = linear_cross_entropy(hidden, head, torch.tensor([0]), soft_cap=3.0)
    capped = 3 * math.tanh(2 / 3), 3 * math.tanh(1)
    assert total.item() == pytest.approx(math.log(1 + math.exp(capped[1] - capped[0])))


@pytest.mark.parametrize("trained", [False, True])
def test_bfloat16_rounds_the_logits_as_the_models_own_head_does(trained):
    problem = Problem(Case(mask=False))
    hidden = problem.hidden.detach().bfloat16().requires_grad_()
    head = problem.head.detach().bfloat16().requires_grad_(trained)
    leaves = {"hidden": hidden} | ({"head": head} if trained else {})
    expected = torch_cross_entropy(
        hidden.double().flatten(0, 1) @ head.double().T, problem.ids, reduction="none"
    )
    total = summed(hidden, head, problem.targets)
    assert total.dtype == torch.float32
    assert_same(total, expected.sum(), leaves, tolerance=2e-2)
    tokens = losses(hidden, head, problem.targets)
    assert tokens.dtype == torch.float32
    torch.testing.assert_close(
        tokens.double().flatten(), expected.detach(), rtol=0.02, atol=0.05, check_dtype=False
    )


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [summed, losses])
def test_a_half_precision_head_under_float32_states_is_exact(function, half):
    problem = Problem(Case(dtype=torch.float32, bias=True, lora="trained", mask=False))
    head = problem.head.detach().to(half)
    form = problem.form | {"bias": problem.bias.to(half)}
    got = function(problem.hidden, head, problem.targets, **form)
    exact = form | {"bias": form["bias"].double()}
    lora = problem.lora._replace(A=problem.lora.A.double(), B=problem.lora.B.double())
    expected = function(
        problem.hidden.double(), head.double(), problem.targets, **(exact | {"lora": lora})
    )
    assert got.dtype == torch.float32
    assert_same(got, expected, problem.leaves, tolerance=1e-5)


@pytest.mark.parametrize("trained", [False, True])
def test_float16(trained):
    problem = Problem(Case(mask=False))
    hidden = problem.hidden.detach().half().requires_grad_()
    head = problem.head.detach().half().requires_grad_(trained)
    leaves = {"hidden": hidden} | ({"head": head} if trained else {})
    z = hidden.double().flatten(0, 1) @ head.double().T
    expected = torch_cross_entropy(z, problem.ids, reduction="sum")
    assert_same(summed(hidden, head, problem.targets), expected, leaves, tolerance=2e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [False, True])
def test_on_a_gpu(dtype, trained):
    problem = Problem(Case(dtype=torch.float32, mask=True))
    hidden = problem.hidden.detach().to("cuda", dtype).requires_grad_()
    head = problem.head.detach().to("cuda", dtype).requires_grad_(trained)
    leaves = {"hidden": hidden} | ({"head": head} if trained else {})
    mask, ids = problem.mask.cuda(), problem.ids.cuda()
    z = hidden[mask].double() @ head.double().T
    expected = torch_cross_entropy(z, ids, reduction="none")
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    arguments = (hidden, head, problem.targets.cuda(), mask)
    assert_same(summed(*arguments), expected.sum(), leaves, tolerance=tolerance)
    assert_same(losses(*arguments)[mask], expected, leaves, tolerance=tolerance)
    assert distance(summed(*arguments, chunk=3000), expected.sum()) < tolerance
