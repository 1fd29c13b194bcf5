"""Objectives from hidden states and the head, in PyTorch, that never hold the logits."""

from __future__ import annotations

from tunemath.objective.fused.cross_entropy import linear_cross_entropy, linear_token_log_probs
from tunemath.objective.fused.divergence import linear_kl
from tunemath.objective.fused.entropy import linear_entropy
from tunemath.objective.fused.head import Lora

__all__ = [
    "Lora",
    "linear_cross_entropy",
    "linear_entropy",
    "linear_kl",
    "linear_token_log_probs",
]
