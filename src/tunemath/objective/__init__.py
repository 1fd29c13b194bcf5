"""Choice 2, the objective: what is minimised, per token or per pair, reduced in one place."""

from __future__ import annotations

from tunemath.objective.divergence import kl_divergence, kl_from_logits
from tunemath.objective.logprobs import sequence_log_prob, token_log_probs
from tunemath.objective.preference import dpo_loss, dpo_margin
from tunemath.objective.record import Objective
from tunemath.objective.reduction import masked_mean, masked_sum, pooled_mean
from tunemath.objective.sft import cross_entropy

__all__ = [
    "Objective",
    "cross_entropy",
    "dpo_loss",
    "dpo_margin",
    "kl_divergence",
    "kl_from_logits",
    "masked_mean",
    "masked_sum",
    "pooled_mean",
    "sequence_log_prob",
    "token_log_probs",
]
