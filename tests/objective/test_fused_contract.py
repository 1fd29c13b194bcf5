"""What holds for all fused objectives: their products, their memory and their gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from fused_calls import (
    BASE_HEAD,
    BASE_HIDDEN,
    HEAD,
    HIDDEN,
    NEAR_HEAD,
    NEAR_HIDDEN,
    TARGETS,
    D,
    N,
    V,
    drawn,
    entropy,
    every,
    kl,
    leaves,
    near_kl,
    shared_kl,
    trainable,
)
from fused_cases import assert_same, distance, losses, recorded, summed
from fused_cases import poisoned as poisoned

from tunemath.objective.fused import (
    Lora,
    linear_cross_entropy,
    linear_entropy,
    linear_kl,
)

# What a call multiplies, in products of n·D·V, where the mask selects n rows.
PRODUCTS = [
    (summed, "value", 1),
    (summed, "frozen", 2),
    (summed, "trained", 3),
    (summed, "head only", 2),
    (losses, "value", 1),
    (losses, "frozen", 2),
    (losses, "trained", 4),
    (shared_kl, "value", 2),
    (shared_kl, "frozen", 3),
    (kl, "value", 2),
    (near_kl, "value", 3),
    (kl, "frozen", 4),
    (entropy, "value", 1),
    (entropy, "frozen", 2),
    (entropy, "trained", 4),
]
MODES = {
    "value": {"grad": False},
    "frozen": {},
    "trained": {"trained": True},
    "head only": {"grad": False, "trained": True},
}


@pytest.mark.parametrize("chunk", [None, 20_000])
@pytest.mark.parametrize(("function", "mode", "products"), PRODUCTS)
def test_how_many_products_are_made(function, mode, products, chunk):
    hidden, head, targets = leaves(**MODES[mode])
    mask = torch.arange(N) % 3 == 0
    call = partial(function, hidden, head, targets, mask, chunk=chunk)
    made = recorded(call, hidden, head).multiplied / (int(mask.sum()) * D * V)
    # Values of two heads look at a few hundred tokens first, to choose between two and three.
    look = 1024 / V if function in (kl, near_kl) and mode == "value" else 0.0
    assert products <= made <= products + look


# How many tiles are alive at once, with what is made of them: a bound, in units of ``held`` below.
TILES = {summed: 3, losses: 3, entropy: 5, kl: 9, near_kl: 9, shared_kl: 9}


@pytest.mark.parametrize(("function", "mode", "products"), PRODUCTS)
def test_the_logits_are_never_held(function, mode, products):
    hidden, head, targets = leaves(**MODES[mode])
    chunk, rows, mask = 20_000, 100, torch.arange(N) % 3 == 0
    run = recorded(
        partial(function, hidden, head, targets, mask, chunk=chunk),
        hidden, head, BASE_HEAD, BASE_HIDDEN, NEAR_HEAD, NEAR_HIDDEN,
    )  # fmt: skip
    # A tile has at least 256 tokens, and the look at two heads 512; a head that trains has a
    # gradient of its size.
    look = function in (kl, near_kl) and mode == "value"
    held = max(chunk, (512 if look else 256) * rows, N * D)
    whole = V * D if mode in ("trained", "head only") else 0
    assert run.largest <= max(held, whole) < rows * V / 5
    assert run.peak <= 4 * (TILES[function] * held + 2 * whole)
    assert run.peak < 4 * rows * V


def test_a_trained_heads_logits_take_no_memory_beside_its_gradient():
    hidden, _, targets = leaves(rows=D)
    head = HEAD.repeat(40, 1).requires_grad_()
    run = recorded(partial(summed, hidden, head, targets), hidden, head)
    # A few tiles of the D rows: kept apart, the logits would be as much again.
    assert run.peak < 1.5 * 4 * len(head) * D


@pytest.mark.parametrize("function", [summed, losses, entropy, shared_kl])
def test_a_half_precision_head_is_never_copied_whole(function):
    head = HEAD.half()
    mask = torch.arange(N) < 2
    run = recorded(partial(function, HIDDEN, head, TARGETS, mask, chunk=20_000), HIDDEN, head)
    assert run.largest < V * D


@every
@trainable
def test_gradcheck(function, trained):
    hidden, head, targets = leaves(trained=trained, dtype=torch.float64, rows=4, vocab=6)
    hidden = hidden.detach()[:, :3].requires_grad_()
    head = head.detach()[:, :3].requires_grad_(trained)
    A = drawn(2, 3).requires_grad_(trained)
    B = drawn(6, 2).requires_grad_(trained)
    bias = drawn(6).requires_grad_(trained)
    options = {"label_smoothing": 0.1, "z_loss": 0.1} if function is summed else {}

    def call(hidden, head, bias, A, B):
        lora = Lora(A, B, 0.5)
        return function(hidden, head, targets, bias=bias, lora=lora, soft_cap=3.0, **options)

    assert torch.autograd.gradcheck(call, (hidden, head, bias, A, B))


@every
@trainable
def test_a_second_backward_gives_the_same_gradient(function, trained):
    hidden, head, targets = leaves(trained=trained, rows=20)
    wanted = [hidden, head] if trained else [hidden]
    total = function(hidden, head, targets).sum()
    first = torch.autograd.grad(total, wanted, retain_graph=True)
    kept = [one.clone() for one in first]
    for one in first:
        one.mul_(17.0)  # the caller may change what is the caller's
    second = torch.autograd.grad(3 * total, wanted, retain_graph=True)
    for one, other in zip(kept, second, strict=True):
        torch.testing.assert_close(3 * one, other)
    total.backward(retain_graph=True)
    total.backward()
    for one, leaf in zip(kept, wanted, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * one)


@every
@trainable
def test_a_graph_of_the_gradient_is_refused(function, trained):
    hidden, head, targets = leaves(trained=trained, rows=5)
    value = function(hidden, head, targets)
    for total in (value.sum(), value.pow(2).sum()):
        with pytest.raises(RuntimeError, match=r"differentiable once: create_graph=True has no"):
            torch.autograd.grad(total, hidden, create_graph=True)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "vjp", "vmap of grad"])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("linear_cross_entropy", lambda h: summed(h, HEAD, TARGETS[:5])),
        ("linear_token_log_probs", lambda h: losses(h, HEAD, TARGETS[:5]).sum()),
        ("linear_kl", lambda h: linear_kl(h, BASE_HIDDEN[:5], HEAD).sum()),
        ("linear_entropy", lambda h: linear_entropy(h, HEAD).sum()),
    ],
)
def test_functional_transforms_are_refused_by_name(name, call, transform):
    hidden = HIDDEN[:5]
    run = {
        "grad": lambda: torch.func.grad(call)(hidden),
        "vmap": lambda: torch.func.vmap(call)(hidden[None]),
        "jvp": lambda: torch.func.jvp(call, (hidden,), (hidden,)),
        "vjp": lambda: torch.func.vjp(call, hidden),
        "vmap of grad": lambda: torch.func.vmap(torch.func.grad(call))(hidden[None]),
    }[transform]
    with pytest.raises(RuntimeError, match=rf"^{name} forms its gradient.*use \.backward\(\)"):
        run()


@every
def test_forward_mode_is_refused(function):
    hidden, head, targets = leaves(grad=False, rows=5)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(hidden, torch.ones_like(hidden))
        with pytest.raises(NotImplementedError, match="jvp"):
            function(dual, head, targets)


@every
@trainable
def test_the_value_is_the_same_where_no_gradient_is_recorded(function, trained):
    hidden, head, targets = leaves(trained=trained, rows=20)
    expected = function(hidden, head, targets).detach()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            got = function(hidden, head, targets)
        assert not got.requires_grad
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@every
@trainable
def test_autocast_changes_nothing(function, trained):
    hidden, head, targets = leaves(trained=trained, rows=20)
    wanted = [hidden, head] if trained else [hidden]
    expected = function(hidden, head, targets)
    gradients = torch.autograd.grad(expected.sum(), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = function(hidden, head, targets)
        grads = torch.autograd.grad(got.sum(), wanted)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)
    assert all(map(torch.equal, grads, gradients))


@every
@trainable
def test_strides_do_not_matter(function, trained):
    hidden, head, targets = leaves(trained=trained, rows=20)
    wanted = {"hidden": hidden} | ({"head": head} if trained else {})
    expected = function(hidden, head, targets)
    spaced = torch.stack([targets, targets], -1)[..., 0]
    got = function(hidden.t().contiguous().t(), head.t().contiguous().t(), spaced)
    assert_same(got, expected, wanted, tolerance=1e-5)
    expanded = hidden[:1].expand(20, D)
    got = function(expanded, head, targets)
    assert_same(got, function(expanded.contiguous(), head, targets), wanted, tolerance=1e-6)


@every
@pytest.mark.parametrize("soft_cap", [None, 3.0])
@pytest.mark.parametrize("which", ["head", "bias", "A", "B"])
def test_a_part_of_the_head_may_train_alone(which, soft_cap, function):
    hidden, head, targets = leaves(grad=False, dtype=torch.float64, rows=20, vocab=400)

    parts = {"head": head, "bias": drawn(400), "A": drawn(3, D), "B": drawn(400, 3)}
    smoothing = {"label_smoothing": 0.1} if function is summed else {}

    def gradient(hidden, leaf):
        for one in parts.values():
            one.requires_grad_(one is leaf or hidden.requires_grad)
        lora = Lora(parts["A"], parts["B"], 0.5)
        value = function(
            hidden, head, targets, bias=parts["bias"], lora=lora, soft_cap=soft_cap, **smoothing
        )
        return torch.autograd.grad(value.sum(), leaf)[0]

    together = gradient(hidden.clone().requires_grad_(), parts[which])
    assert distance(gradient(hidden, parts[which]), together) < 1e-12


@trainable
def test_a_base_that_changes_before_backward_is_noticed_where_it_matters(trained):
    hidden, head, _ = leaves(trained=trained, dtype=torch.float64, rows=20)
    base_hidden, base_head = BASE_HIDDEN[:20].double(), BASE_HEAD.double()
    got = linear_kl(hidden, base_hidden, head, base_head).sum()
    (expected,) = torch.autograd.grad(got, hidden, retain_graph=True)
    base_hidden.zero_()
    assert torch.equal(torch.autograd.grad(got, hidden, retain_graph=True)[0], expected)
    base_head.mul_(2.0)
    if trained:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            got.backward()
    else:
        assert torch.equal(torch.autograd.grad(got, hidden)[0], expected)


@pytest.mark.parametrize("function", [summed, losses, entropy])
def test_a_batch_of_any_shape_targets_and_mask_of_any_integers(function):
    hidden, head, targets = leaves(rows=24)
    mask = torch.arange(24) % 3 == 0
    expected = function(hidden, head, targets, mask)
    for shape in ((24,), (4, 6), (2, 3, 4)):
        for ids, m in ((torch.int64, torch.bool), (torch.int32, torch.int8), (torch.int16,) * 2):
            y, m = targets.to(ids).view(shape), mask.to(m).view(shape)
            got = function(hidden.view(*shape, D), head, y, m)
            assert got.ndim == 0 or got.shape == shape
            assert_same(got.flatten(), expected.view(-1), {"hidden": hidden}, tolerance=1e-6)
    alone = function(hidden[0], head, targets[0])
    assert alone.shape == ()
    torch.testing.assert_close(alone, function(hidden[:1], head, targets[:1]).sum())


@pytest.mark.parametrize("direction", ["tuned||base", "base||tuned"])
def test_a_batch_of_any_shape_for_kl(direction):
    states = HIDDEN[:24], BASE_HIDDEN[:24]
    expected = linear_kl(*states, HEAD, direction=direction)
    for shape in ((4, 6), (2, 3, 4)):
        got = linear_kl(*(one.view(*shape, D) for one in states), HEAD, direction=direction)
        assert torch.equal(got, expected.view(shape))
    alone = linear_kl(*(one[0] for one in states), HEAD, direction=direction)
    torch.testing.assert_close(alone, expected[0])


@every
def test_gradients_have_the_dtype_of_what_they_belong_to(function):
    for states, weights in (
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float32),
    ):
        hidden, head, targets = leaves(rows=20)
        hidden = hidden.detach().to(states).requires_grad_()
        head = head.detach().to(weights).requires_grad_()
        got = function(hidden, head, targets)
        assert got.dtype == torch.promote_types(states, torch.float32)
        grads = torch.autograd.grad(got.sum(), (hidden, head))
        assert [one.dtype for one in grads] == [states, weights]
        assert all(torch.isfinite(one).all() for one in grads)


@pytest.mark.slow
@every
@trainable
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_torch_compile_runs_it_as_it_is(function, trained):
    torch.use_deterministic_algorithms(False)
    hidden, head, targets = leaves(trained=trained, rows=20)
    wanted = {"hidden": hidden} | ({"head": head} if trained else {})

    def step(hidden, head):
        return function(hidden * 2.0, head, targets) + 1.0

    compiled = torch.compile(step, backend="aot_eager")
    assert_same(compiled(hidden, head), step(hidden, head), wanted, tolerance=1e-6)
    torch._dynamo.reset()
    whole = torch.compile(step, backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"torch\.compiler\.disable"):
        whole(hidden, head)


def test_a_head_that_trains_is_its_own_base_where_nothing_is_recorded():
    head = HEAD.clone().requires_grad_()
    with torch.no_grad():
        got = linear_kl(HIDDEN, BASE_HIDDEN, head)
    assert torch.equal(got, linear_kl(HIDDEN, BASE_HIDDEN, HEAD))


def test_the_sum_has_the_dtype_of_the_states_whatever_trains():
    weights = torch.ones(N, dtype=torch.float64)
    for trained in (True, False):
        hidden, head, targets = leaves(trained=trained)
        assert summed(hidden, head, targets, weights=weights).dtype == torch.float32


def test_half_precision_weights_are_summed_exactly():
    weights = torch.full((N,), 0.375, dtype=torch.bfloat16)
    weights[0] = 1.5
    _, weight = linear_cross_entropy(HIDDEN, HEAD, TARGETS, weights=weights)
    assert weight.item() == weights.double().sum()
