from __future__ import annotations

import math
import types
from functools import partial

import jax
import numpy as np
import pytest
import torch
from libraries import LIBRARIES, same
from trl_trainers import ACCELERATOR, metrics

from tunemath.objective import cross_entropy, dft_loss, masked_mean

LOGITS = np.random.default_rng(0).normal(size=(4, 6)) * 3
TARGETS = np.array([0, 5, 2, 2])
every_library = pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)


def naive(smoothing=0.0, z_loss=0.0):
    """The loss written out: a target of 1−ε on y and ε/V on every token, and ζ (log Z)²."""
    losses = []
    for row, y in zip(LOGITS, TARGETS, strict=True):
        log_z = math.log(math.fsum(math.exp(z) for z in row))
        share = [smoothing / len(row) + (1 - smoothing) * (v == y) for v in range(len(row))]
        nll = math.fsum(w * (log_z - z) for w, z in zip(share, row, strict=True))
        losses.append(nll + z_loss * log_z**2)
    return losses


@every_library
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0, 0), (0.1, 0), (0, 1e-2), (0.3, 1e-3)])
def test_every_library_gives_the_naive_loop(make, smoothing, z_loss):
    got = cross_entropy(make(LOGITS), make(TARGETS), label_smoothing=smoothing, z_loss=z_loss)
    np.testing.assert_allclose(same(got), naive(smoothing, z_loss), rtol=1e-13)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_equals_torch_in_value_and_gradient(smoothing):
    z, y = torch.tensor(LOGITS, requires_grad=True), torch.tensor(TARGETS)
    ours = cross_entropy(z, y, label_smoothing=smoothing)
    theirs = torch.nn.functional.cross_entropy(z, y, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), z), torch.autograd.grad(theirs.sum(), z)
    )


@every_library
def test_dft_is_the_loop(make):
    expected = [-math.exp(-loss) * -loss for loss in naive()]
    np.testing.assert_allclose(same(dft_loss(make(LOGITS), make(TARGETS))), expected, rtol=1e-12)


def test_dfts_gradient_is_that_of_the_probability():
    z, y = torch.tensor(LOGITS, requires_grad=True), torch.tensor(TARGETS)
    (ours,) = torch.autograd.grad(dft_loss(z, y).sum(), z)
    p = torch.softmax(z, -1).gather(1, y[:, None])
    (expected,) = torch.autograd.grad(-p.sum(), z)
    torch.testing.assert_close(ours, expected)
    traced = jax.jit(jax.grad(lambda a: dft_loss(a, TARGETS.tolist()).sum()))(
        jax.numpy.asarray(LOGITS)
    )
    np.testing.assert_allclose(traced, expected.numpy(), rtol=1e-10, atol=1e-15)


def trls(kind, log_probs, mask):
    """Return the loss of TRL's SFT trainer for given log-probabilities, 0 off the mask."""
    trl = pytest.importorskip("trl")
    accelerator = types.SimpleNamespace(**vars(ACCELERATOR), parallelism_config=None)
    stand_in = types.SimpleNamespace(
        model=types.SimpleNamespace(training=False),
        args=types.SimpleNamespace(loss_type=kind, average_tokens_across_devices=False),
        accelerator=accelerator,
        aux_loss_enabled=False,
        compute_loss_func=None,
        label_smoother=None,
        _metrics=metrics(),
        _total_train_tokens=0,
    )
    nothing = torch.zeros_like(log_probs)
    outputs = types.SimpleNamespace(
        log_probs=log_probs * mask, label_mask=mask, entropy=nothing, is_top1=nothing.bool()
    )
    return trl.SFTTrainer.compute_loss(stand_in, lambda **_: outputs, {})


@pytest.mark.parametrize(("kind", "loss"), [("nll", cross_entropy), ("dft", dft_loss)])
def test_equals_trls_own_trainer_in_value_and_gradient(kind, loss):
    z, y = torch.tensor(LOGITS, requires_grad=True), torch.tensor(TARGETS)
    mask = torch.tensor([True, True, False, True])
    ours = masked_mean(loss(z, y), mask)
    theirs = trls(kind, torch.log_softmax(z, -1).gather(1, y[:, None])[:, 0], mask)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(theirs, z))


def test_trls_dft_of_an_impossible_target_is_no_number():
    theirs = trls("dft", torch.tensor([-math.inf, -1.0]), torch.tensor([True, True]))
    assert math.isnan(theirs)


def test_dft_of_an_impossible_target_is_zero():
    z = torch.tensor([[0.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    loss = dft_loss(z, torch.tensor([1]))
    loss.sum().backward()
    assert loss.item() == 0.0
    assert z.grad is not None
    assert z.grad.tolist() == [[0.0, 0.0]]


def test_gradcheck():
    z, y = torch.tensor(LOGITS, requires_grad=True), torch.tensor(TARGETS)
    assert torch.autograd.gradcheck(
        lambda z: cross_entropy(z, y, label_smoothing=0.2, z_loss=1e-2), (z,)
    )


def test_the_two_ends():
    # A certain model has no loss; a uniform one log V, whatever the smoothing.
    assert cross_entropy([1e4, 0.0, 0.0], 0) == 0.0
    for smoothing in (0.0, 0.5):
        loss = cross_entropy(np.zeros(8), 3, label_smoothing=smoothing)
        assert loss == pytest.approx(math.log(8), rel=1e-14)
    assert cross_entropy([0.0, -math.inf], 0, label_smoothing=0.1) == math.inf


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_stay_finite(size):
    z = torch.tensor([[size, 0.0, -size]], requires_grad=True)
    loss = cross_entropy(z, torch.tensor([1]), label_smoothing=0.1, z_loss=1e-4)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_masked_is_compressed():
    z, mask = torch.tensor(LOGITS), torch.tensor([True, False, True, True])
    y = torch.tensor(TARGETS)
    for loss in (cross_entropy, dft_loss):
        whole = masked_mean(loss(z, y), mask)
        torch.testing.assert_close(whole, loss(z[mask], y[mask]).mean())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("label_smoothing", 1.0, "label_smoothing is 1.0; expected 0 or more, below 1"),
        ("label_smoothing", -0.1, "label_smoothing is -0.1"),
        ("z_loss", -1.0, "z_loss is -1.0; expected 0 or more"),
        ("z_loss", math.nan, "z_loss is nan"),
    ],
)
def test_options_without_meaning_are_refused(option, value, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(LOGITS, TARGETS, **{option: value})


ON_LOGITS = {
    "plain": lambda z: cross_entropy(z, TARGETS.tolist()),
    "smoothed": lambda z: cross_entropy(z, TARGETS.tolist(), label_smoothing=0.2, z_loss=1e-2),
    "dft": lambda z: dft_loss(z, TARGETS.tolist()),
}
every_loss = pytest.mark.parametrize("loss", ON_LOGITS.values(), ids=ON_LOGITS)


@every_loss
def test_jax_and_torch_func_give_the_gradient(loss):
    z = torch.tensor(LOGITS, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(z).sum(), z)
    traced = jax.jit(jax.grad(lambda a: loss(a).sum()))(jax.numpy.asarray(LOGITS))
    np.testing.assert_allclose(traced, expected.numpy(), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(torch.func.grad(lambda a: loss(a).sum())(z.detach()), expected)


@every_loss
def test_torch_maps_batches_by_vmap(loss):
    z = torch.tensor(np.stack([LOGITS, LOGITS[::-1].copy()]))
    torch.testing.assert_close(torch.func.vmap(loss)(z), torch.stack([loss(z[0]), loss(z[1])]))


@every_loss
def test_jax_without_64_bits(loss):
    with jax.enable_x64(False):
        value, gradient = jax.value_and_grad(lambda a: loss(a).sum())(jax.numpy.asarray(LOGITS))
        assert (value.dtype, gradient.dtype) == (np.float32, np.float32)
    assert float(value) == pytest.approx(float(loss(LOGITS).sum()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*lru_cache:UserWarning")
@pytest.mark.parametrize(
    "loss", [cross_entropy, partial(cross_entropy, label_smoothing=0.2, z_loss=1e-2), dft_loss]
)
def test_torch_compiles_without_a_break(loss):
    torch.compiler.reset()
    given = torch.tensor(LOGITS), torch.tensor(TARGETS)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), loss(*given))
