"""Supervised fine-tuning: the cross-entropy of the reference tokens."""

from __future__ import annotations

from typing import Any

from tunemath.objective.logprobs import token_log_probs

__all__ = ["cross_entropy"]


def cross_entropy(logits: Any, targets: Any) -> Any:
    """Return the cross-entropy of each target token.

    Let z be the logits at a position and y its target: ``log Σ_v exp z_v − z_y``.

    ``logits`` (…, V); ``targets`` (…) of token ids in 0 … V−1. Returns (…) nats, at least 0, not
    reduced: answer-only SFT is ``masked_mean(cross_entropy(logits, targets), mask)``.

    Valid when logits and targets are already shifted: ``logits[:, :-1]`` with ``ids[:, 1:]``.

    >>> cross_entropy([[0.0, 0.0], [1000.0, 0.0]], [0, 1]).tolist()
    [0.6931471805599453, 1000.0]
    """
    return -token_log_probs(logits, targets)
