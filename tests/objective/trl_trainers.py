"""What stands in for TRL's trainers, so that their own code computes a test's losses.

A trainer's loss is called without the trainer: in its place stands a namespace of what the loss
reads, and in the model's place a function that returns the test's log-probabilities.
"""

from __future__ import annotations

import collections
import functools
import types

import pytest
import torch

PAIRS, TOKENS = 4, 9
LENGTHS = torch.tensor([3, 9, 1, 6, 8, 2, 5, 6])  # four chosen answers, then four rejected ones
PLACE = torch.arange(TOKENS)
CHOSEN, REJECTED = LENGTHS.chunk(2)
COUNTS = {"chosen_length": CHOSEN, "rejected_length": REJECTED}


@functools.cache
def trainers():
    """Return the classes whose losses are called; the experimental ones say that they are."""
    pytest.importorskip("trl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        from trl import DPOTrainer, KTOTrainer
        from trl.experimental.cpo import CPOTrainer
        from trl.experimental.orpo import ORPOTrainer
        from trl.experimental.tpo import TPOTrainer
    return types.SimpleNamespace(
        dpo=DPOTrainer, kto=KTOTrainer, cpo=CPOTrainer, orpo=ORPOTrainer, tpo=TPOTrainer
    )


def metrics():
    return collections.defaultdict(lambda: collections.defaultdict(list))


ACCELERATOR = types.SimpleNamespace(
    device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
)
COMMON = {
    "model": types.SimpleNamespace(training=True),
    "accelerator": ACCELERATOR,
    "aux_loss_enabled": False,
    "precompute_ref_logps": True,
    "_total_train_tokens": 0,
    "_tp_size": 1,
}


def completion_mask(lengths):
    """Return the mask of prompt and answer: one prompt token, then ``length`` of the answer."""
    answer = lengths[:, None] > PLACE
    return torch.cat([torch.zeros(len(lengths), 1, dtype=torch.bool), answer], dim=1).long()


def forward(log_probs, squares=None):
    """Return what TRL's fused model returns for given log-probabilities."""
    nothing = torch.zeros_like(log_probs)
    return types.SimpleNamespace(
        log_probs=log_probs,
        entropy=nothing,
        mean_logits=nothing,
        log_sum_sq_probs=squares,
        is_top1=nothing.bool(),
    )


def batch(mask, **more):
    return {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        **more,
    }


def tokens(seed, dtype=torch.float64, scale=2.0):
    """Return log-probabilities of tokens (a leaf), the reference's, and those of WPO's squares."""
    rng = torch.Generator().manual_seed(seed)
    leaf = -torch.rand(2 * PAIRS, TOKENS, generator=rng, dtype=torch.float64) * scale
    reference = -torch.rand(2 * PAIRS, TOKENS, generator=rng, dtype=torch.float64) * scale
    squares = -torch.rand(2 * PAIRS, TOKENS, generator=rng, dtype=torch.float64) * scale
    return leaf.to(dtype).requires_grad_(), reference.to(dtype), squares.to(dtype)


def agree(ours, theirs, tolerance=1e-6):
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=1e-6 * tolerance)


def answers(seed):
    """Return summed log-probabilities of chosen and rejected answers, as leaves."""
    leaf, _, _ = tokens(seed)
    selected = completion_mask(LENGTHS)[:, 1:].bool()
    sums = torch.where(selected, leaf.detach(), 0.0).sum(1)
    return [half.clone().requires_grad_() for half in sums.chunk(2)]
