"""The logistic function and its logarithms, stable at any argument; σ(x) = 1 / (1 + exp(−x))."""

from __future__ import annotations

from typing import Any

__all__ = ["logistic_loss", "sigmoid", "softplus"]


def softplus(xp: Any, x: Any) -> Any:
    """Return log(1 + exp x) = −log σ(−x), without overflow, and differentiable at 0."""
    return xp.logaddexp(xp.zeros_like(x), x)


def sigmoid(xp: Any, x: Any) -> Any:
    """Return σ(x), to full relative precision however small it is; 1 − σ(x) is σ(−x)."""
    return xp.exp(-softplus(xp, -x))


def logistic_loss(xp: Any, x: Any, label_smoothing: float = 0.0) -> Any:
    """Return −(1 − ε) log σ(x) − ε log σ(−x)."""
    loss = softplus(xp, -x)
    if label_smoothing == 0:
        return loss
    # Each term apart: as loss + ε x it would be ∞ − ∞ for an answer that cannot occur.
    return (1.0 - label_smoothing) * loss + label_smoothing * softplus(xp, x)
