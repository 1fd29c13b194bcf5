"""The memory that training takes, term by term.

Weights, gradients and optimizer state follow from counts and are exact. Activations and the
output layer's part depend on what is kept for the backward pass and are estimates.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunemath.arrays import positive
from tunemath.budget.shapes import Adapters, Shapes

__all__ = ["Term", "training_memory"]

_FLOAT32 = 4
# Logits of a tile on a CPU, and arrays of D numbers a supervised token: `objective.fused`.
_TILE = 1 << 19
_OUTPUT_ROWS = 6


@dataclass(frozen=True)
class Term:
    """One part of the memory, in bytes; ``exact`` when it follows from counts alone."""

    name: str
    bytes: int
    exact: bool


def training_memory(
    model: Shapes,
    adapters: Adapters,
    *,
    rows: int,
    tokens: int,
    supervised: int,
    weight_bytes: int = _FLOAT32,
) -> tuple[Term, ...]:
    """Return the memory of training adapters on a frozen base with AdamW.

    Let N be the base's parameters, P the trainable ones (float32), b bytes a base weight, B rows
    at once of T tokens, S of them supervised:

    - weights: ``b N + 4 P``; gradients ``4 P``; optimizer state ``8 P`` (two moments);
    - activations: ``4 B T (L (4 D + 4 H d + 4 I) + 2 D)``: of each layer, both norms' inputs and
      outputs; queries, keys and values spread over all heads, and their mixture; gate, its
      activation, up and their product;
    - output layer: ``4 (6 B S D + 2^19)``: supervised rows of hidden states, their products and
      gradient, and one tile of logits, whatever the vocabulary.

    ``rows`` is B (chosen and rejected both count), ``tokens`` T, ``supervised`` S. Returns terms
    in bytes.

    Valid when attention is fused (no T × T scores are kept), activations are not recomputed and
    are float32, the model's logits are plain products of its output layer (else all of them are
    held), and every linear layer has an adapter; with fewer targets less is kept. The r-wide
    activations inside the adapters and the allocator's slack are left out.
    """
    rows, tokens, supervised, weight_bytes = positive(
        rows=rows, tokens=tokens, supervised=supervised, weight_bytes=weight_bytes
    )
    d, mixed = model.hidden, model.heads * model.head_dim
    kept = model.layers * (4 * d + 4 * mixed + 4 * model.intermediate) + 2 * d
    output = _OUTPUT_ROWS * rows * supervised * d + _TILE
    trainable = adapters.trainable
    return (
        Term("weights", weight_bytes * model.parameters + _FLOAT32 * trainable, exact=True),
        Term("gradients", _FLOAT32 * trainable, exact=True),
        Term("optimizer state", 2 * _FLOAT32 * trainable, exact=True),
        Term("activations", _FLOAT32 * rows * tokens * kept, exact=False),
        Term("output layer", _FLOAT32 * output, exact=False),
    )
