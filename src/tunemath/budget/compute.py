"""Floating-point operations of a forward pass, and of training adapters on a frozen base.

A product of (m, k) with (k, n) takes 2 m k n operations. Only matrix products are counted: norms,
activations and softmax are a per cent or less.
"""

from __future__ import annotations

from collections.abc import Iterable

from tunemath.budget.shapes import Adapters, Shapes

__all__ = ["attended_pairs", "forward_flops", "training_flops"]


def forward_flops(model: Shapes, tokens: int, logit_positions: int, *, attended: int = 0) -> float:
    """Return the operations of one forward pass.

    Let N be the weights of the linear layers, n tokens, S the positions at which the head is
    computed and a the pairs of a token with one that it attends to:
    ``2 N n + 2 D V S + 4 L H d a``.

    ``tokens`` n and ``logit_positions`` S are counts over all rows; ``attended`` is a, from
    `attended_pairs`, and 0 leaves attention out. Returns FLOPs.

    Source: Kaplan et al. 2020, arXiv 2001.08361, section 2.1; the head is counted apart.
    """
    _not_negative(tokens=tokens, logit_positions=logit_positions, attended=attended)
    return 2.0 * model.linear_parameters * tokens + _head(model, logit_positions, attended)


def training_flops(
    model: Shapes, adapters: Adapters, tokens: int, logit_positions: int, *, attended: int = 0
) -> float:
    """Return the operations of a forward and a backward pass with a frozen base.

    Let N, D, V, L, H, d, n, S and a be those of `forward_flops`, and P the trainable parameters.
    A frozen weight takes part in the forward pass and in the gradient of its input, but has no
    gradient of its own; a trained weight has all three; attention's backward pass is twice its
    forward pass: ``4 N n + 6 P n + 4 D V S + 12 L H d a``.

    ``tokens`` n and ``logit_positions`` S are counts over all rows of an epoch or step;
    ``attended`` is a, and 0 leaves attention out. Returns FLOPs.

    Valid when activations are not recomputed. Counts the input gradient of the first layer's
    projections too, which is not needed when embeddings are frozen (under one part in L).
    """
    _not_negative(tokens=tokens, logit_positions=logit_positions, attended=attended)
    linear = (4.0 * model.linear_parameters + 6.0 * adapters.trainable) * tokens
    head = _head(model, logit_positions, 0)
    return linear + 2 * head + 3 * _head(model, 0, attended)


def attended_pairs(lengths: Iterable[int]) -> int:
    """Return the pairs of a token with one that it may attend to, in rows of these lengths.

    Under a causal mask the token at place t attends to t + 1: ``Σ T (T + 1) / 2``.

    >>> attended_pairs([3, 2])
    9
    """
    return sum(length * (length + 1) // 2 for length in lengths)


def _head(model: Shapes, positions: int, attended: int) -> float:
    """Return the forward operations of the head and of attention."""
    head = 2.0 * model.hidden * model.vocab * positions
    return head + 4.0 * model.layers * model.heads * model.head_dim * attended


def _not_negative(**counts: int) -> None:
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"{name} is {count}; expected 0 or more")
