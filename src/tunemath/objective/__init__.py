"""Choice 2, the objective: what is minimised, per token or per pair, reduced in one place.

The formulas here run on any array library. Their PyTorch versions from hidden states, which never
hold the logits, are in `tunemath.objective.fused`; the preference losses in
`tunemath.objective.preference`.
"""

from __future__ import annotations

from tunemath.objective.distillation import distillation_loss
from tunemath.objective.divergence import (
    alpha_divergence,
    js_divergence,
    kl_divergence,
    renyi_divergence,
    skewed_kl,
    total_variation,
)
from tunemath.objective.estimators import kl_k1, kl_k2, kl_k3
from tunemath.objective.logits_divergence import kl_from_logits
from tunemath.objective.logprobs import (
    adjusted_logits,
    bits_per_byte,
    entropy,
    log_normaliser,
    log_sum_square_probs,
    mean_log_prob,
    perplexity,
    sequence_log_prob,
    token_log_probs,
)
from tunemath.objective.preference import dpo_loss, dpo_margin
from tunemath.objective.record import Objective
from tunemath.objective.reduction import masked_mean, masked_sum, pooled_mean, sequence_sum
from tunemath.objective.sft import cross_entropy, dft_loss

__all__ = [
    "Objective",
    "adjusted_logits",
    "alpha_divergence",
    "bits_per_byte",
    "cross_entropy",
    "dft_loss",
    "distillation_loss",
    "dpo_loss",
    "dpo_margin",
    "entropy",
    "js_divergence",
    "kl_divergence",
    "kl_from_logits",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "log_normaliser",
    "log_sum_square_probs",
    "masked_mean",
    "masked_sum",
    "mean_log_prob",
    "perplexity",
    "pooled_mean",
    "renyi_divergence",
    "sequence_log_prob",
    "sequence_sum",
    "skewed_kl",
    "token_log_probs",
    "total_variation",
]
