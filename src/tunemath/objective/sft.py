"""Supervised fine-tuning: the cross-entropy of the reference tokens, and its variants."""

from __future__ import annotations

import math
from typing import Any

from tunemath.arrays import constant, numeric, plain
from tunemath.objective.logprobs import log_normaliser, token_log_probs

__all__ = ["cross_entropy", "dft_loss"]


def cross_entropy(
    logits: Any, targets: Any, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Any:
    """Return the cross-entropy of each target token.

    Let z be the logits at a position, y its target, ε the smoothing, ζ the z-loss's weight, and
    log Z the `log_normaliser`: ``(1−ε)(log Z − z_y) + ε (log Z − Σ_v z_v / V) + ζ (log Z)²``.

    ``logits`` (…, V); ``targets`` (…) of token ids in 0 … V−1; ``label_smoothing`` in [0, 1);
    ``z_loss`` of 0 or more, such as 1e-4. Returns (…) nats, at least 0, not reduced: answer-only
    SFT is ``masked_mean(cross_entropy(logits, targets), mask)``.

    Valid when logits and targets are already shifted: ``logits[:, :-1]`` with ``ids[:, 1:]``.
    With smoothing, a logit of −∞ makes the loss infinite: the smoothed target has mass there.

    >>> cross_entropy([[0.0, 0.0], [1000.0, 0.0]], [0, 1]).tolist()
    [0.6931471805599453, 1000.0]
    >>> round(float(cross_entropy([0.0, 2.0], 1, label_smoothing=0.1)), 6)
    0.226928

    Source: smoothing, Szegedy et al. 2015, arXiv 1512.00567, section 7 (as torch has it: the
    uniform share includes the target); z-loss, Chowdhery et al. 2022, arXiv 2204.02311, section 5.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing!r}; expected 0 or more, below 1")
    if not 0 <= z_loss < math.inf:
        raise ValueError(f"z_loss is {z_loss!r}; expected 0 or more, such as 1e-4")
    loss = -token_log_probs(logits, targets)
    if not label_smoothing and not z_loss:
        return loss
    xp, z = numeric(logits)
    log_z = log_normaliser(z)
    if label_smoothing:
        # Relative to log Z before the mean: large logits of one sign would lose their digits.
        even = -xp.mean(z - log_z[..., None], axis=-1)
        loss = (1.0 - label_smoothing) * loss + label_smoothing * even
    return plain(loss + z_loss * log_z * log_z if z_loss else loss)


def dft_loss(logits: Any, targets: Any) -> Any:
    """Return dynamic fine-tuning's loss of each target token.

    Let p_y be the target's probability and sg the constant of that value:
    ``−sg(p_y) log p_y``: cross-entropy weighted so that a token's gradient no longer grows as
    1/p_y where the model thinks it unlikely.

    ``logits`` (…, V); ``targets`` (…) of token ids in 0 … V−1. Returns (…) nats, from 0 to 1/e,
    not reduced.

    Valid as `cross_entropy`. As the weight is a constant, the gradient is that of −p_y.

    >>> round(float(dft_loss([0.0, 0.0], 1)), 6)
    0.346574

    Source: Wu et al. 2025, arXiv 2508.05629, equation 9. Where p_y is 0, TRL gives NaN and this 0.
    """
    xp, log_p = numeric(token_log_probs(logits, targets))
    p = constant(xp.exp(log_p))
    # 0·log 0 = 0: an impossible target has no weight, and no gradient.
    return plain(-p * xp.where(p > 0, log_p, 0.0))
