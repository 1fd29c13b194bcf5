"""Other libraries as backends, and what the fused objectives refuse."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from fused_calls import (
    BASE_HEAD,
    BASE_HIDDEN,
    HEAD,
    HIDDEN,
    LORA,
    TARGETS,
    D,
    N,
    V,
    drawn,
    entropy,
    leaves,
    shared_kl,
    trainable,
)
from fused_cases import assert_same, distance, losses, summed
from fused_cases import poisoned as poisoned

from tunemath.errors import MaskError, ShapeError
from tunemath.objective.fused import linear_cross_entropy, linear_kl, linear_token_log_probs


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@trainable
def test_torchs_own_function_as_a_backend(trained, smoothing):
    hidden, head, targets = leaves(trained=trained, dtype=torch.float64, rows=40)
    wanted = {"hidden": hidden} | ({"head": head} if trained else {})
    mask, weights = torch.arange(40) % 3 == 0, drawn(40).abs()
    call = partial(linear_cross_entropy, hidden, head, targets, mask, weights=weights)
    ours, count = call(label_smoothing=smoothing)
    theirs, weight = call(label_smoothing=smoothing, backend="torch")
    assert count == weight
    assert_same(ours, theirs, wanted, tolerance=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_cut_cross_entropy_as_a_backend():
    pytest.importorskip("cut_cross_entropy")
    torch.use_deterministic_algorithms(False)
    hidden, head, targets = leaves(trained=True, rows=40)
    mask = torch.arange(40) % 3 == 0
    results = []
    for backend in ("tunemath", "cce"):
        total, weight = linear_cross_entropy(hidden, head, targets, mask, backend=backend)
        results.append((total, weight, *torch.autograd.grad(total, (hidden, head))))
    for ours, theirs in zip(*results, strict=True):
        assert distance(ours, theirs) < 1e-4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "liger"}, ValueError, "backend='liger' needs a GPU.* hidden is on the CPU"),
        ({"backend": "nothing"}, ValueError, "expected one of tunemath, torch, liger, cce"),
        ({"backend": "torch", "scale": 2.0}, ValueError, "'torch' has no scale here; leave"),
        ({"backend": "torch", "soft_cap": 2.0, "chunk": 9}, ValueError, "no soft_cap or chunk"),
        ({"backend": "liger", "z_loss": 0.1}, ValueError, "backend='liger' has no z_loss here"),
        ({"backend": "cce", "lora": LORA}, ValueError, "backend='cce' has no lora here"),
        ({"backend": "cce", "bias": torch.zeros(V)}, ValueError, "no bias or label_smoothing"),
        ({"backend": "cce", "label_smoothing": 0.1}, ValueError, "no bias or label_smoothing"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing is 1.0; expected 0 or more, below"),
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing is -0.1"),
        ({"label_smoothing": math.nan}, ValueError, "label_smoothing is nan"),
        ({"label_smoothing": torch.tensor(0.1)}, ValueError, "label_smoothing is tensor"),
        ({"z_loss": torch.tensor(0.1)}, ValueError, "z_loss is tensor"),
        ({"z_loss": -1.0}, ValueError, "z_loss is -1.0; expected 0 or more"),
        ({"z_loss": math.inf}, ValueError, "z_loss is inf"),
        ({"weights": torch.ones(N, 1)}, ShapeError, r"weights \(300, 1\) and targets \(300,\)"),
        ({"weights": torch.full((N,), -1.0)}, ValueError, "weights hold negative numbers"),
        ({"weights": torch.full((N,), math.nan)}, ValueError, "infinity or NaN; expected 0 or"),
    ],
)  # fmt: skip
def test_options_of_the_sum_that_have_no_meaning(options, error, message):
    with pytest.raises(error, match=message):
        linear_cross_entropy(HIDDEN, HEAD, TARGETS, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale": 0.0}, ValueError, "scale is 0.0; expected a number above 0"),
        ({"scale": math.nan}, ValueError, "scale is nan"),
        ({"soft_cap": -1.0}, ValueError, "soft_cap is -1.0; expected a number above 0"),
        ({"soft_cap": math.inf}, ValueError, "soft_cap is inf"),
        ({"scale": torch.tensor(2.0)}, ValueError, "scale is tensor.*, and no tensor: it has"),
        ({"soft_cap": torch.tensor(2.0)}, ValueError, "soft_cap is tensor.*, and no tensor"),
        ({"bias": [0.0] * V}, ShapeError, r"bias has no tensor; expected \(5000,\)"),
        ({"lora": LORA._replace(scale=math.nan)}, ValueError, "scale of lora is nan; expected a"),
        ({"lora": LORA._replace(scale=torch.ones(()))}, ValueError, "scale of lora is tensor"),
        ({"chunk": 0}, ValueError, "chunk is 0; expected how many logits"),
        ({"chunk": 1.5}, ValueError, "chunk is 1.5"),
        ({"bias": torch.zeros(D)}, ShapeError, r"bias has shape \(16,\); expected \(5000,\)"),
        ({"lora": LORA._replace(A=torch.zeros(D, 2))}, ShapeError,
         r"lora has A \(16, 2\) and B \(5000, 2\); expected \(r, 16\) and \(5000, r\)"),
        ({"lora": LORA._replace(B=torch.zeros(V, 3))}, ShapeError, r"B \(5000, 3\)"),
        ({"head": HEAD.T}, ShapeError, r"hidden .*\(300, 16\).* expected .*(5000|V, D)"),
        ({"head": HEAD[0]}, ShapeError, r"head has shape \(16,\) .* expected floating-point"),
        ({"head": HEAD.long()}, ShapeError, "dtype torch.int64; expected floating-point"),
        ({"hidden": HIDDEN[:, :3]}, ShapeError, r"hidden \(300, 3\) and head \(5000, 16\)"),
        ({"hidden": HIDDEN.long()}, ShapeError, r"hidden is \(300, 16\) of torch.int64; expected"),
        ({"mask": torch.ones(N, 1)}, ShapeError, r"mask is \(300, 1\) .*expected shape \(300,\)"),
        ({"mask": TARGETS}, MaskError, "holds values other than 0 and 1.*labels != -100"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("function", [summed, losses, shared_kl, entropy])
def test_what_every_one_refuses(function, options, error, message):
    arguments = {"hidden": HIDDEN, "head": HEAD, "targets": TARGETS} | options
    with pytest.raises(error, match=message):
        function(**arguments)


@pytest.mark.parametrize("function", [linear_cross_entropy, linear_token_log_probs])
@pytest.mark.parametrize(
    ("targets", "mask", "error", "message"),
    [
        (TARGETS - 10**6, None, MaskError, r"targets contain -\d+ and no mask is given; .*mask="),
        (TARGETS.where(TARGETS % 3 > 0, -100), None, MaskError, "targets contain -100 and no mask"),
        (TARGETS - V, torch.ones(N), MaskError, "where the mask selects; expected token ids"),
        (TARGETS + V, None, ShapeError, r"target \d+ does not fit a head of 5000 tokens; do the"),
        (TARGETS[:-1], None, ShapeError, r"\(299,\) of torch.int64; expected integers of shape"),
        (TARGETS.float(), None, ShapeError, "torch.float32; expected integers of shape"),
    ],
)
def test_targets_that_do_not_fit(function, targets, mask, error, message):
    with pytest.raises(error, match=message):
        function(HIDDEN, HEAD, targets, mask)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"direction": "forward"}, ValueError,
         r"direction is 'forward'; expected 'tuned\|\|base' or 'base\|\|tuned'"),
        ({"base_hidden": BASE_HIDDEN[:5]}, ShapeError, r"\(5, 16\); expected \(300, 16\)"),
        ({"base_hidden": BASE_HIDDEN[:, :5]}, ShapeError, r"\(300, 5\); expected \(300, 16\)"),
        ({"base_head": BASE_HEAD[:9]}, ShapeError, r"base_head \(9, 16\) differ in their"),
        ({"base_head": BASE_HEAD[:, :9]}, ShapeError, r"base_hidden .*expected \(300, 9\)"),
        ({"base_head": BASE_HEAD, "base_bias": torch.zeros(3)}, ShapeError, r"bias .*\(3,\)"),
        ({"base_bias": torch.zeros(V)}, ValueError, "base_bias has no meaning without base_head"),
        ({"head": HEAD.clone().requires_grad_()}, ValueError, "the head trains.*give base_head="),
        ({"bias": torch.zeros(V, requires_grad=True)}, ValueError, "not the base's; give base_h"),
    ],
)  # fmt: skip
def test_what_kl_refuses(options, error, message):
    arguments = {"hidden": HIDDEN, "base_hidden": BASE_HIDDEN, "head": HEAD} | options
    with pytest.raises(error, match=message):
        linear_kl(**arguments)


@pytest.mark.parametrize("function", [summed, losses, shared_kl, entropy])
def test_states_that_are_no_tensor(function):
    with pytest.raises(ShapeError, match=r"hidden is \[\[.*expected a floating-point tensor"):
        function(HIDDEN.tolist(), HEAD, TARGETS)


@pytest.mark.parametrize(
    ("function", "options", "error", "message"),
    [
        (summed, {"targets": None}, ShapeError, "targets are None; expected integers of shape"),
        (summed, {"targets": TARGETS > 9}, ShapeError, "of torch.bool; expected integers"),
        (summed, {"targets": TARGETS.tolist()}, ShapeError, r"targets are \[\d.*expected integers"),
        (entropy, {"mask": [1] * N}, ShapeError, r"mask is \[1, 1.*expected shape \(300,\)"),
        (summed, {"weights": [1.0] * N}, ShapeError, r"weights list and targets \(300,\) differ"),
        (summed, {"weights": torch.ones(N, requires_grad=True)}, ValueError,
         "weights require a gradient, but are constants here; detach"),
        (summed, {"lora": tuple(LORA)}, ShapeError, r"lora is tuple; expected Lora\(A, B, scale\)"),
        (entropy, {"head": HEAD[:0]}, ShapeError, r"head has shape \(0, 16\); expected one token"),
        (entropy, {"head": HEAD.tolist()}, ShapeError, "head has no tensor; expected floating"),
        (summed, {"chunk": True}, ValueError, "chunk is True; expected how many logits"),
    ],
)  # fmt: skip
def test_what_is_of_another_kind(function, options, error, message):
    arguments = {"hidden": HIDDEN, "head": HEAD, "targets": TARGETS} | options
    with pytest.raises(error, match=message):
        function(**arguments)
