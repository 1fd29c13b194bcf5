"""Floating-point operations of a forward pass, and of training.

A product of (m, k) with (k, n) takes 2 m k n operations. Only matrix products are counted: norms,
activations and softmax are a per cent or less.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tunemath.budget.shapes import Shapes

__all__ = ["Training", "attended_pairs", "forward_flops", "training_flops"]


@dataclass(frozen=True)
class Training:
    """What of a model is trained, as far as products are concerned: counts of weights."""

    added: int = 0
    """P, the weights that every token is multiplied by besides the model's own."""
    unfrozen: int = 0
    """U, the model's own trained weights in linear layers but the head."""
    head_trained: bool = False
    depth: float = 1.0
    """δ, the share of the layers that the backward pass reaches."""


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
    model: Shapes,
    work: Training,
    tokens: int,
    logit_positions: int,
    *,
    attended: int = 0,
    checkpointing: bool = False,
) -> float:
    """Return the operations of a forward and a backward pass.

    Let N, D, V, L, H, d, n, S and a be those of `forward_flops`, P the weights that a method adds
    to the products, U those of the model's own weights that it trains, and δ the share of the
    layers that the backward pass reaches. A frozen weight takes part in the forward pass and in
    the gradient of its input, but has no gradient of its own; a trained weight has all three;
    attention's backward pass is twice its forward pass:

    ``2 (1 + δ) N n + 6 P n + 2 U n + 4 D V S + 4 (1 + 2δ) L H d a``, and ``2 D V S`` more where
    the output layer is trained; with ``checkpointing`` the δ layers pass forward once more.

    ``tokens`` n and ``logit_positions`` S are counts over all rows of an epoch or step;
    ``attended`` is a, and 0 leaves attention out. Returns FLOPs.

    Valid where the backward pass reaches the lowest trained layer and stops. Counts the input
    gradient of that layer's projections too (under one part in L).
    """
    _not_negative(tokens=tokens, logit_positions=logit_positions, attended=attended)
    share = work.depth
    linear = 2.0 * (1 + share) * model.linear_parameters + 6.0 * work.added + 2.0 * work.unfrozen
    head = _head(model, logit_positions, 0) * (3 if work.head_trained else 2)
    attention = _head(model, 0, attended)
    again = 0.0
    if checkpointing:
        again = (share * model.linear_parameters + work.added) * 2.0 * tokens + share * attention
    return linear * tokens + head + (1 + 2 * share) * attention + again


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
