"""The losses of TRL's KTO, CPO, ORPO and TPO trainers, by their own code, in value and gradient."""

from __future__ import annotations

import functools
import types

import pytest
import torch
from trl_trainers import (
    ACCELERATOR,
    CHOSEN,
    COMMON,
    COUNTS,
    LENGTHS,
    PAIRS,
    REJECTED,
    TOKENS,
    agree,
    answers,
    batch,
    completion_mask,
    forward,
    metrics,
    tokens,
    trainers,
)

from tunemath.objective.preference import (
    alphapo_loss,
    apo_zero_unpaired_loss,
    chosen_nll,
    cpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    odds_ratio_loss,
    simpo_loss,
    tpo_l_loss,
    tpo_loss,
)

VOCABULARY = 7


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.6)])
@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_the_losses_of_the_kto_trainer(name, weights):
    for seed in range(4):  # with a mean of either sign: TRL cuts the negative one off
        leaf, reference, mismatched = tokens(seed)
        mask = completion_mask(LENGTHS)
        selected = mask[:, 1:].bool()
        label = torch.tensor([True, False, False, True, True, False, True, True])
        sums = [torch.where(selected, x, 0.0).sum(1) for x in (leaf, reference, mismatched)]
        trainer = types.SimpleNamespace(
            **COMMON,
            _metrics=metrics(),
            calculate_KL=name == "kto",
            loss_type=name,
            beta=0.3,
            desirable_weight=weights[0],
            undesirable_weight=weights[1],
        )
        trainer._compute_kl_logps = functools.partial(trainers().kto._compute_kl_logps, trainer)
        answers = iter([mismatched] * (name == "kto") + [leaf])
        model = lambda **_: forward(torch.where(selected, next(answers), 0.0))  # noqa: B023, E731
        inputs = batch(
            mask,
            KL_input_ids=torch.zeros_like(mask),
            KL_attention_mask=torch.ones_like(mask),
            KL_completion_mask=mask,
            label=label,
            ref_logps=sums[1],
            ref_KL_logps=sums[1],
        )
        theirs = trainers().kto._compute_loss(trainer, model, inputs, False)
        options = {"desirable_weight": weights[0], "undesirable_weight": weights[1]}
        if name == "kto":
            point = kto_reference_point(sums[2], sums[1])
            ours = kto_loss(sums[0], sums[1], label, point, 0.3, **options)
        else:
            ours = apo_zero_unpaired_loss(sums[0], sums[1], label, 0.3, **options)
        loss = ours.mean()
        agree(
            (loss, torch.autograd.grad(loss, leaf)[0]),
            (theirs, torch.autograd.grad(theirs, leaf)[0]),
        )


def test_smoothed_dpo_is_trls_smoothed_cpo_of_log_ratios():
    pairs = [*answers(3), *(half.detach() for half in answers(4))]
    ratios = [pairs[0] - pairs[2], pairs[1] - pairs[3]]
    trainer = types.SimpleNamespace(
        alpha=0.0, beta=0.4, label_smoothing=0.2, loss_type="sigmoid", accelerator=ACCELERATOR
    )
    theirs = trainers().cpo.cpo_loss(trainer, *ratios)[0]
    ours = dpo_loss(*pairs, 0.4, label_smoothing=0.2)
    gradients = [torch.autograd.grad(x.sum(), pairs[:2], retain_graph=True) for x in (ours, theirs)]
    agree((ours, *gradients[0]), (theirs, *gradients[1]))


@pytest.mark.parametrize(
    ("name", "alpha", "share"),
    [
        ("sigmoid", 0.0, 0.0),
        ("sigmoid", 0.0, 0.2),
        ("hinge", 0.0, 0.0),
        ("ipo", 0.0, 0.0),
        ("simpo", 0.0, 0.0),
        ("simpo", 0.0, 0.2),
        ("simpo", 0.25, 0.0),
        ("simpo", -0.5, 0.2),
    ],
)
def test_the_losses_of_the_cpo_trainer(name, alpha, share):
    chosen, rejected = answers(0)
    trainer = types.SimpleNamespace(
        alpha=alpha,
        beta=1.5,
        simpo_gamma=0.4,
        label_smoothing=share,
        loss_type=name,
        accelerator=ACCELERATOR,
    )
    per_token = name in ("ipo", "simpo")  # what TRL's forward hands to its loss
    theirs = trainers().cpo.cpo_loss(
        trainer,
        chosen / CHOSEN if per_token else chosen,
        rejected / REJECTED if per_token else rejected,
    )[0]
    zero = torch.zeros_like(chosen)
    if name == "simpo":
        arrays = (chosen, rejected, CHOSEN, REJECTED, 1.5)
        options = {"gamma": 0.4, "label_smoothing": share}
        ours = alphapo_loss(*arrays, alpha=alpha, **options)
        if not alpha:
            torch.testing.assert_close(simpo_loss(*arrays, **options), ours)
    elif name == "sigmoid":
        ours = cpo_loss(chosen, rejected, 1.5, label_smoothing=share)
    elif name == "hinge":
        ours = hinge_loss(chosen, rejected, zero, zero, 1.5)
    else:
        ours = ipo_loss(chosen, rejected, zero, zero, 1.5, **COUNTS)
    gradients = [torch.autograd.grad(x.sum(), (chosen, rejected)) for x in (ours, theirs)]
    agree((ours, *gradients[0]), (theirs, *gradients[1]))


class Float64(torch.Tensor):
    """A tensor that stays in float64 where TRL's ORPO asks for float32."""

    def float(self):
        return self


def test_the_loss_of_the_orpo_trainer():
    for seed in range(3):
        chosen, rejected = answers(seed)
        trainer = types.SimpleNamespace(beta=1.0, accelerator=ACCELERATOR)
        theirs = (
            -trainers()
            .orpo.odds_ratio_loss(
                trainer,
                (chosen / CHOSEN).as_subclass(Float64),
                (rejected / REJECTED).as_subclass(Float64),
            )[0]
            .as_subclass(torch.Tensor)
        )
        ours = odds_ratio_loss(chosen, rejected, CHOSEN, REJECTED)
        gradients = [torch.autograd.grad(x.sum(), (chosen, rejected)) for x in (ours, theirs)]
        agree((ours, *gradients[0]), (theirs, *gradients[1]))


@pytest.mark.parametrize("share", [0.0, 0.2])
@pytest.mark.parametrize("name", ["sigmoid", "tpo-l"])
def test_the_losses_of_the_tpo_trainer(name, share):
    gold = torch.tensor([4, 1, 9, 2])
    lengths = torch.cat([LENGTHS, gold])
    mask = completion_mask(lengths)
    rng = torch.Generator().manual_seed(0)
    shape = (3 * PAIRS, TOKENS + 1)
    logits = torch.randn(*shape, VOCABULARY, generator=rng, dtype=torch.float64).requires_grad_()
    ids = torch.randint(VOCABULARY, shape, generator=rng)
    trainer = types.SimpleNamespace(
        **COMMON,
        _metrics=metrics(),
        loss_type=name,
        beta=0.5,
        label_smoothing=share,
        tpo_alpha=0.7,
        tpo_l_gamma=0.2,
    )
    inputs = batch(mask) | {"input_ids": ids}
    theirs = trainers().tpo._compute_loss(
        trainer, lambda **_: types.SimpleNamespace(logits=logits), inputs, False
    )
    log_probs = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
    chosen, rejected, best = (log_probs * mask[:, 1:]).sum(1).chunk(3)
    if name == "sigmoid":
        losses = tpo_loss(chosen, rejected, 0.5, label_smoothing=share)
    else:
        losses = tpo_l_loss(
            *(chosen, rejected, CHOSEN, REJECTED, 0.5), gamma=0.2, label_smoothing=share
        )
    loss = losses.mean() + 0.7 * chosen_nll(best).sum() / gold.sum()
    agree(
        (loss, torch.autograd.grad(loss, logits)[0]),
        (theirs, torch.autograd.grad(theirs, logits)[0]),
    )
