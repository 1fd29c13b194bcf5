"""What is done to an answer's tokens, or to its pair, before any of the losses."""

from __future__ import annotations

from typing import Any

from tunemath.arrays import boolean, constant, count_dtype, known, numeric, plain, same_shape
from tunemath.objective.logprobs import sequence_log_prob
from tunemath.objective.preference.inputs import token_counts

__all__ = ["ld_log_prob", "wpo_weights"]


def wpo_weights(log_probs: Any, log_sum_square_probs: Any, mask: Any) -> Any:
    """Return how much each answer is the policy's own: WPO's weight of an off-policy answer.

    Let ℓ_t be the log-probability of token t, s_t = log Σ_v π(v)² over the vocabulary at its
    position (the log of what a sampled token's probability is on average), and m ∈ {0, 1} the
    mask: ``exp(Σ_t m_t (ℓ_t − s_t) / Σ_t m_t)``. A pair's loss is multiplied by the product of its
    two answers' weights.

    ``log_probs`` and ``log_sum_square_probs`` (…, T) nats; ``mask`` (…, T) of booleans or 0/1.
    Returns (…), without a unit and without gradient: about 1 for a sample of the policy, above it
    for an answer likelier than that. A row of which nothing is selected raises.

    >>> wpo_weights([[-0.5, -1.0, -2.0]], [[-0.5, -1.0, -1.0]], [[1, 1, 0]]).tolist()
    [1.0]

    Source: Zhou et al. 2024, "WPO", arXiv 2406.11827, equation 2; TRL's ``use_weighting``, which
    like us leaves weights above 1 as they are.
    """
    xp, token, expected = numeric(log_probs, log_sum_square_probs)
    same_shape(log_probs=token, log_sum_square_probs=expected)
    m = boolean(xp, mask, like=token)
    total = sequence_log_prob(constant(token) - constant(expected), m)
    _, total = numeric(total)
    return plain(xp.exp(total / xp.sum(xp.astype(m, total.dtype), axis=-1)))


def ld_log_prob(log_probs: Any, mask: Any, shared_length: Any, alpha: float) -> Any:
    """Return each answer's log-probability with less weight on what its partner has no room for.

    Let ℓ_t be the log-probability of the t-th selected token and n the length that both answers of
    the pair have, min(|c|, |r|): ``Σ_{t ≤ n} ℓ_t + α Σ_{t > n} ℓ_t``.

    ``log_probs`` (…, T) nats; ``mask`` (…, T) of booleans or 0/1; ``shared_length`` (…) tokens, n;
    ``alpha`` is α from 0 (the tail doesn't count) to 1 (`sequence_log_prob`), without a unit.
    Returns (…) nats, for policy and reference alike to go into any loss. A row of which nothing is
    selected raises.

    >>> ld_log_prob([[-9.0, -1.0, -2.0, -4.0]], [[0, 1, 1, 1]], [2], alpha=0.5).tolist()
    [-5.0]

    Source: Liu et al. 2024, "Length Desensitization in Direct Preference Optimization" (LD-DPO),
    arXiv 2409.06411; TRL's ``ld_alpha``.
    """
    if known((alpha >= 0) & (alpha <= 1)) is False:
        raise ValueError(f"alpha is {alpha!r}; expected a number from 0 to 1")
    xp, token = numeric(log_probs)
    m = boolean(xp, mask, like=token)
    same_shape(log_probs=token, mask=m)
    _, whole = numeric(sequence_log_prob(token, m))
    (shared,) = token_counts(xp, whole, shared_length=shared_length)
    place = xp.cumulative_sum(xp.astype(m, count_dtype(xp)), axis=-1)
    tail = m & (xp.astype(place, token.dtype) > shared[..., None])
    # At α = 0 an impossible token of the tail would be 0 · ∞.
    weighted = xp.zeros_like(token) if alpha == 0 else alpha * token
    return sequence_log_prob(xp.where(tail, weighted, token), m)
