"""The memory that training takes, term by term.

Weights, gradients and optimizer state follow from counts and are exact. Activations and logits
depend on what the framework keeps for the backward pass and are estimates.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunemath.arrays import positive
from tunemath.budget.shapes import Adapters, Shapes

__all__ = ["Term", "training_memory"]

_FLOAT32 = 4
_LOGIT_COPIES = 4


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
    logit_positions: int,
    weight_bytes: int = _FLOAT32,
) -> tuple[Term, ...]:
    """Return the memory of training adapters on a frozen base with AdamW.

    Let N be the base's parameters, P the trainable ones (float32), b bytes a base weight, B rows
    at once of T tokens, S positions of each row at which logits are computed:

    - weights: ``b N + 4 P``; gradients ``4 P``; optimizer state ``8 P`` (two moments);
    - activations: ``4 B T (L (4 D + 4 H d + 4 I) + 2 D)``: of each layer, both norms' inputs and
      outputs; queries, keys and values spread over all heads, and their mixture; gate, its
      activation, up and their product;
    - logits: ``16 B S V``: logits, logits less their maximum, exponentials, gradient.

    ``rows`` is B (chosen and rejected both count), ``tokens`` T, ``logit_positions`` S. Returns
    terms in bytes.

    Valid when attention is fused (no T × T scores are kept), activations are not recomputed and
    are float32, and every linear layer has an adapter; with fewer targets less is kept. The
    r-wide activations inside the adapters and the allocator's slack are left out.
    """
    rows, tokens, logit_positions, weight_bytes = positive(
        rows=rows, tokens=tokens, logit_positions=logit_positions, weight_bytes=weight_bytes
    )
    d, mixed = model.hidden, model.heads * model.head_dim
    kept = model.layers * (4 * d + 4 * mixed + 4 * model.intermediate) + 2 * d
    logits = _LOGIT_COPIES * rows * logit_positions * model.vocab
    trainable = adapters.trainable
    return (
        Term("weights", weight_bytes * model.parameters + _FLOAT32 * trainable, exact=True),
        Term("gradients", _FLOAT32 * trainable, exact=True),
        Term("optimizer state", 2 * _FLOAT32 * trainable, exact=True),
        Term("activations", _FLOAT32 * rows * tokens * kept, exact=False),
        Term("logits", _FLOAT32 * logits, exact=False),
    )
