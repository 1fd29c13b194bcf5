"""Log-probabilities of given tokens, from logits.

``logits[..., t, :]`` and ``targets[..., t]`` belong together: in a causal language model the
logits at position t predict the token at t + 1, so the caller shifts
(``logits[:, :-1]`` with ``ids[:, 1:]``).
"""

from __future__ import annotations

import math
from typing import Any

from tunemath.arrays import boolean, integer, numeric, plain, same_shape
from tunemath.errors import MaskError, ShapeError

__all__ = ["sequence_log_prob", "token_log_probs"]


def token_log_probs(logits: Any, targets: Any) -> Any:
    """Return the log-probability of each target token.

    Let z be the logits at a position and y its target: ``z_y − log Σ_v exp z_v``.

    ``logits`` (…, V); ``targets`` (…) of token ids in 0 … V−1. Returns (…) nats, at most 0.

    Valid when logits are finite, or −∞ for tokens that can't occur. A target of −100 raises:
    give a real id there and leave the position out by a mask.

    >>> token_log_probs([[0.0, 0.0], [0.0, 1000.0]], [1, 0]).tolist()
    [-0.6931471805599453, -1000.0]
    """
    xp, z = numeric(logits)
    y = integer(xp, targets, like=z)
    _check_targets(xp, z, y)
    # Subtracting the maximum is exact in value (it cancels) and keeps exp from overflowing.
    shifted = z - xp.max(z, axis=-1, keepdims=True)
    log_normaliser = xp.log(xp.sum(xp.exp(shifted), axis=-1))
    chosen = xp.take_along_axis(shifted, xp.expand_dims(y, axis=-1), axis=-1)
    return plain(xp.squeeze(chosen, axis=-1) - log_normaliser)


def sequence_log_prob(log_probs: Any, mask: Any) -> Any:
    """Return the log-probability of each row's selected tokens, summed.

    Let ℓ_t be the log-probability of token t given those before it and m ∈ {0, 1} the mask:
    ``log p(answer | prompt) = Σ_t m_t ℓ_t``.

    ``log_probs`` (…, T) nats; ``mask`` (…, T) of booleans or 0/1. Returns (…) nats. A row of
    which nothing is selected raises: its probability would be 1 whatever the model.

    >>> sequence_log_prob([[-0.5, -1.0, -2.0]], [[0, 1, 1]]).tolist()
    [-3.0]
    """
    xp, values = numeric(log_probs)
    m = boolean(xp, mask, like=values)
    same_shape(log_probs=values, mask=m)
    if values.ndim == 0:
        raise ShapeError("log_probs is one number; expected (…, T), the last axis over tokens")
    rows = xp.any(m, axis=-1)
    if not bool(xp.all(rows)):
        empty = int(xp.sum(xp.astype(~rows, xp.int64)))
        raise MaskError(
            f"{empty} of {math.prod(rows.shape)} row(s) of a mask {tuple(m.shape)} select no "
            "token; every row needs an answer"
        )
    return plain(xp.sum(xp.where(m, values, 0.0), axis=-1))


def _check_targets(xp: Any, logits: Any, targets: Any) -> None:
    """Refuse targets that don't fit; a negative index would silently count from the end."""
    if logits.ndim == 0 or tuple(targets.shape) != tuple(logits.shape[:-1]):
        raise ShapeError(
            f"targets {tuple(targets.shape)} and logits {tuple(logits.shape)} do not go together; "
            "expected targets (…) for logits (…, V), both after the shift by one token"
        )
    vocab = logits.shape[-1]
    if 0 in targets.shape:
        return
    low, high = int(xp.min(targets)), int(xp.max(targets))
    if low < 0:
        raise MaskError(
            f"targets contain {low}; expected token ids from 0 to {vocab - 1}. Give a real id at "
            "positions that don't count, and leave them out by a mask"
        )
    if high >= vocab:
        raise ShapeError(
            f"target {high} does not fit a vocabulary of {vocab} (logits {tuple(logits.shape)}); "
            "expected ids below it: do the tokenizer and the model belong together?"
        )
