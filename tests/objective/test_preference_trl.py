"""The losses of TRL's DPO trainer, computed by its own code, in value and gradient."""

from __future__ import annotations

import types

import pytest
import torch
from trl_trainers import (
    CHOSEN,
    COMMON,
    COUNTS,
    LENGTHS,
    PLACE,
    REJECTED,
    agree,
    batch,
    completion_mask,
    forward,
    metrics,
    tokens,
    trainers,
)

from tunemath.objective.preference import chosen_nll, ld_log_prob, pair_loss, wpo_weights


def by_trl(leaf, reference, squares, name, **settings):
    """Return the loss of TRL's DPO trainer and its gradient by token."""
    mask = completion_mask(LENGTHS)
    selected = mask[:, 1:].bool()
    trainer = types.SimpleNamespace(
        **COMMON,
        _metrics=metrics(),
        loss_types=[name],
        loss_weights=[1.0],
        **{
            "beta": 0.1,
            "label_smoothing": 0.0,
            "ld_alpha": None,
            "use_weighting": False,
            "f_divergence_type": "reverse_kl",
            "f_alpha_divergence_coef": 0.5,
            "args": types.SimpleNamespace(discopop_tau=0.05),
        }
        | settings,
    )
    model = lambda **_: forward(torch.where(selected, leaf, 0.0), squares)  # noqa: E731
    refs = torch.where(selected, reference, 0.0)
    if trainer.ld_alpha is None:
        refs = refs.sum(1).chunk(2)
    else:
        shared = torch.minimum(*LENGTHS.chunk(2)).repeat(2)
        weight = torch.where(shared[:, None] > PLACE, 1.0, trainer.ld_alpha)
        refs = (refs * weight).sum(1).chunk(2)
    inputs = batch(mask, ref_chosen_logps=refs[0], ref_rejected_logps=refs[1])
    loss = trainers().dpo._compute_loss(trainer, model, inputs, False)
    return loss, torch.autograd.grad(loss, leaf)[0]


def by_us(leaf, reference, name, **options):
    """Return the mean of our loss over the pairs and its gradient by token."""
    selected = completion_mask(LENGTHS)[:, 1:].bool()
    sums = [torch.where(selected, x, 0.0).sum(1).chunk(2) for x in (leaf, reference)]
    loss = pair_loss(name, *sums[0], *sums[1], **options).mean()
    return loss, torch.autograd.grad(loss, leaf)[0]


PER_TOKEN = ("ipo", "sigmoid_norm")
SMOOTHED = ("exo_pair", "robust", "aot", "aot_unpaired")
OF_THE_MARGIN = ("sigmoid", "hinge", "ipo", "exo_pair", "robust", "discopop", "sigmoid_norm")
OTHERS = ("nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down")


@pytest.mark.parametrize("beta", [0.05, 0.7])
@pytest.mark.parametrize("name", OF_THE_MARGIN + OTHERS)
def test_the_losses_of_the_dpo_trainer(name, beta):
    for seed, share in enumerate((1e-3, 0.1, 0.4)):
        leaf, reference, squares = tokens(seed)
        options = COUNTS if name in PER_TOKEN else {}
        smoothing = {"label_smoothing": share} if name in SMOOTHED else {}
        agree(
            by_us(leaf, reference, name, beta=beta, **options, **smoothing),
            by_trl(leaf, reference, squares, name, beta=beta, **smoothing),
        )


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_discopops_temperature(temperature):
    leaf, reference, squares = tokens(0)
    arguments = types.SimpleNamespace(discopop_tau=temperature)
    agree(
        by_us(leaf, reference, "discopop", temperature=temperature),
        by_trl(leaf, reference, squares, "discopop", args=arguments),
    )


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence"])
@pytest.mark.parametrize("name", OF_THE_MARGIN)
def test_other_divergences(name, divergence):
    leaf, reference, squares = tokens(1)
    options = COUNTS if name in PER_TOKEN else {}
    smoothing = {"label_smoothing": 0.1} if name in SMOOTHED else {}
    agree(
        by_us(leaf, reference, name, divergence=divergence, **options, **smoothing),
        by_trl(*(leaf, reference, squares, name), f_divergence_type=divergence, **smoothing),
    )


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("name", OF_THE_MARGIN)
def test_alpha_divergence_is_theirs_at_one_minus_alpha(name, coefficient):
    """In float32, the widest that TRL's table of clamps has."""
    leaf, reference, squares = tokens(2, torch.float32, scale=0.5)
    options = COUNTS if name in PER_TOKEN else {}
    options = options | {"divergence": "alpha_divergence", "alpha": 1.0 - coefficient}
    smoothing = {"label_smoothing": 0.1} if name in SMOOTHED else {}
    theirs = by_trl(
        *(leaf, reference, squares, name),
        f_divergence_type="alpha_divergence",
        f_alpha_divergence_coef=coefficient,
        **smoothing,
    )
    for mine, other in zip(
        by_us(leaf, reference, name, **options, **smoothing), theirs, strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=3e-5, atol=1e-6)


def test_the_sigmoid_loss_of_trl_leaves_label_smoothing_unread():
    leaf, reference, squares = tokens(3)
    smoothed = by_trl(leaf, reference, squares, "sigmoid", label_smoothing=0.2)
    agree(by_us(leaf, reference, "sigmoid"), smoothed)


def test_the_sft_loss_is_the_pooled_mean_over_tokens():
    leaf, reference, squares = tokens(4)
    selected = completion_mask(LENGTHS)[:, 1:].bool()
    chosen = torch.where(selected, leaf, 0.0).sum(1).chunk(2)[0]
    loss = chosen_nll(chosen).sum() / CHOSEN.sum()
    agree(
        (loss, torch.autograd.grad(loss, leaf)[0]),
        by_trl(leaf, reference, squares, "sft"),
    )


@pytest.mark.parametrize("name", ["sigmoid", "apo_zero", "nca_pair", "ipo"])
def test_weights_of_wpo(name):
    leaf, reference, squares = tokens(5)
    selected = completion_mask(LENGTHS)[:, 1:].bool()
    weights = wpo_weights(leaf, squares, selected).chunk(2)
    sums = [torch.where(selected, x, 0.0).sum(1).chunk(2) for x in (leaf, reference)]
    options = COUNTS if name in PER_TOKEN else {}
    losses = pair_loss(name, *sums[0], *sums[1], **options)
    loss = (losses * weights[0] * weights[1]).mean()
    agree(
        (loss, torch.autograd.grad(loss, leaf)[0]),
        by_trl(leaf, reference, squares, name, use_weighting=True),
    )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_log_probabilities_of_ld_dpo(alpha):
    leaf, reference, squares = tokens(6)
    selected = completion_mask(LENGTHS)[:, 1:].bool()
    shared = torch.minimum(CHOSEN, REJECTED).repeat(2)
    sums = [ld_log_prob(x, selected, shared, alpha).chunk(2) for x in (leaf, reference)]
    loss = pair_loss("sigmoid", *sums[0], *sums[1]).mean()
    agree(
        (loss, torch.autograd.grad(loss, leaf)[0]),
        by_trl(leaf, reference, squares, "sigmoid", ld_alpha=alpha),
    )
