"""From logits to log-probabilities, and what is read off them.

``logits[..., t, :]`` and ``targets[..., t]`` belong together: in a causal language model the
logits at position t predict the token at t + 1, so the caller shifts
(``logits[:, :-1]`` with ``ids[:, 1:]``).
"""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import device

from tunemath.arrays import boolean, constant, integer, known, numeric, plain, same_shape
from tunemath.errors import MaskError, ShapeError

__all__ = [
    "adjusted_logits",
    "bits_per_byte",
    "entropy",
    "log_normaliser",
    "log_sum_square_probs",
    "mean_log_prob",
    "perplexity",
    "sequence_log_prob",
    "token_log_probs",
]


def adjusted_logits(
    logits: Any, *, scale: float = 1.0, soft_cap: float | None = None, temperature: float = 1.0
) -> Any:
    """Return logits as a model's head or a sampler changes them: scaled, capped, tempered.

    Let z be a logit, s the scale, c the cap and τ the temperature: ``c·tanh(s·z / c) / τ``, or
    ``s·z / τ`` without a cap.

    ``logits`` (…) of any shape; ``scale``, ``soft_cap`` and ``temperature`` are numbers above 0,
    without a unit. Returns (…) logits.

    Valid when the model itself does this in the same order: Cohere and Granite scale, Gemma 2
    caps. A logit of −∞ stays −∞: a token that can't occur doesn't become possible by a cap.

    >>> adjusted_logits([30.0, -60.0], soft_cap=30.0).round(4).tolist()
    [22.8478, -28.9208]

    Source: Gemma 2 (arXiv 2408.00118), section 2.
    """
    options = {"scale": scale, "soft_cap": soft_cap, "temperature": temperature}
    for name, value in options.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}; expected a number above 0")
    xp, z = numeric(logits)
    if soft_cap is None:
        return plain(z * (scale / temperature))
    possible = z > -math.inf
    capped = soft_cap / temperature * xp.tanh(xp.where(possible, z, 0.0) * (scale / soft_cap))
    return plain(xp.where(possible, capped, -math.inf))


def log_normaliser(logits: Any) -> Any:
    """Return the logarithm of the softmax's denominator.

    Let z be the logits at a position: ``log Z = log Σ_v exp z_v``.

    ``logits`` (…, V). Returns (…) nats. Its square, weighted, is the z-loss of `cross_entropy`.

    Valid when logits are finite, or −∞ for tokens that can't occur; a row of nothing but −∞
    raises.

    >>> round(float(log_normaliser([0.0, 0.0])), 6)
    0.693147
    """
    xp, z = numeric(logits)
    peak, others, _ = _exponentials(xp, z)
    return plain(xp.log1p(others) + peak)


def token_log_probs(logits: Any, targets: Any) -> Any:
    """Return the log-probability of each target token.

    Let z be the logits at a position and y its target: ``z_y − log Σ_v exp z_v``.

    ``logits`` (…, V); ``targets`` (…) of token ids in 0 … V−1. Returns (…) nats, at most 0, and
    −∞ for a target that can't occur.

    Valid when logits are finite, or −∞ for tokens that can't occur. A target of −100 raises:
    give a real id there and leave the position out by a mask.

    >>> token_log_probs([[0.0, 0.0], [0.0, 1000.0]], [1, 0]).tolist()
    [-0.6931471805599453, -1000.0]
    """
    xp, z = numeric(logits)
    y = integer(xp, targets, like=z)
    _check_targets(xp, z, y)
    peak, others, _ = _exponentials(xp, z)
    chosen = xp.squeeze(xp.take_along_axis(z, xp.expand_dims(y, axis=-1), axis=-1), axis=-1)
    # The peak first: two logits of one size subtract exactly, and log Σ is small beside them.
    return plain((chosen - peak) - xp.log1p(others))


def entropy(logits: Any) -> Any:
    """Return the entropy of the softmax at each position.

    Let p be the softmax of the logits z: ``−Σ_v p_v log p_v``, with 0·log 0 = 0.

    ``logits`` (…, V). Returns (…) nats, from 0 to log V.

    With e_v = exp(z_v − max z) and S = Σ e it is ``log S − Σ e_v (z_v − max z) / S``, of which
    both parts are at least 0: nothing cancels, however peaked p is.

    Valid as `log_normaliser`.

    >>> round(float(entropy([0.0, 0.0])), 6), float(entropy([0.0, -1000.0]))
    (0.693147, 0.0)

    Source: Shannon 1948.
    """
    xp, z = numeric(logits)
    peak, others, weights = _exponentials(xp, z)
    below = xp.where(weights > 0, z - xp.expand_dims(peak, axis=-1), 0.0)
    return plain(xp.log1p(others) - xp.sum(weights * below, axis=-1) / (1.0 + others))


def log_sum_square_probs(logits: Any) -> Any:
    """Return the logarithm of the chance that two draws agree.

    Let p be the softmax of the logits: ``log Σ_v p_v²``.

    ``logits`` (…, V). Returns (…) nats, from −log V to 0: the negative Rényi entropy of order 2,
    and what `wpo_weights` divides by.

    Valid as `log_normaliser`.

    >>> round(float(log_sum_square_probs([0.0, 0.0])), 6)
    -0.693147

    Source: Zhou et al. 2024, "WPO", arXiv 2406.11827.
    """
    xp, z = numeric(logits)
    # log Σ p² = log Z(2z) − 2 log Z(z): the peaks cancel, and a rest beside 1 keeps its digits.
    _, squares, _ = _exponentials(xp, 2.0 * z)
    _, others, _ = _exponentials(xp, z)
    return plain(xp.log1p(squares) - 2.0 * xp.log1p(others))


def sequence_log_prob(log_probs: Any, mask: Any) -> Any:
    """Return the log-probability of each row's selected tokens, summed.

    Let ℓ_t be the log-probability of token t given those before it and m ∈ {0, 1} the mask:
    ``log p(answer | prompt) = Σ_t m_t ℓ_t``.

    ``log_probs`` (…, T) nats; ``mask`` (…, T) of booleans or 0/1. Returns (…) nats. A row of
    which nothing is selected raises: its probability would be 1 whatever the model.

    >>> sequence_log_prob([[-0.5, -1.0, -2.0]], [[0, 1, 1]]).tolist()
    [-3.0]
    """
    return plain(_row_sums(log_probs, mask)[0])


def mean_log_prob(log_probs: Any, mask: Any) -> Any:
    """Return the log-probability a token of each row's selected tokens.

    Let ℓ_t be the log-probability of token t and m ∈ {0, 1} the mask: ``Σ_t m_t ℓ_t / Σ_t m_t``.

    ``log_probs`` (…, T) nats; ``mask`` (…, T) of booleans or 0/1. Returns (…) nats a token, the
    length-normalised form that SimPO, ORPO and IPO per token take. A row of which nothing is
    selected raises.

    >>> mean_log_prob([[-0.5, -1.0, -2.0]], [[0, 1, 1]]).tolist()
    [-1.5]
    """
    total, count = _row_sums(log_probs, mask)
    return plain(total / count)


def perplexity(nats_per_token: Any) -> Any:
    """Return the perplexity of a mean cross-entropy.

    Let ℓ be the mean negative log-probability a token: ``exp ℓ``.

    ``nats_per_token`` (…) nats, pooled over the whole text (ΣΣ nats / Σ tokens). Returns (…)
    without a unit: the number of equally likely tokens that would be as surprising.

    Valid when compared between models of one tokenizer; otherwise use `bits_per_byte`.

    >>> round(float(perplexity(math.log(8.0))), 6)
    8.0
    """
    xp, x = numeric(nats_per_token)
    return plain(xp.exp(x))


def bits_per_byte(nats: Any, n_bytes: Any) -> Any:
    """Return the bits a model needs for a byte of text.

    Let L be the text's summed negative log-probability and n its length: ``L / (n ln 2)``.

    ``nats`` (…) summed over the text's tokens; ``n_bytes`` (…) of the UTF-8 text, above 0.
    Returns (…) bits a byte, which does not depend on how the tokenizer cuts.

    >>> round(float(bits_per_byte(math.log(2.0) * 12, 16)), 6)
    0.75
    """
    xp, x, n = numeric(nats, n_bytes)
    same_shape(nats=x, n_bytes=n)
    if known(~xp.all((n > 0) & (n < math.inf))):
        raise ValueError(
            "n_bytes holds 0, a negative number, infinity or NaN; expected the number of bytes of "
            "the text"
        )
    return plain(x / (n * math.log(2.0)))


def _exponentials(xp: Any, z: Any) -> tuple[Any, Any, Any]:
    """Return the row's maximum m (…), Σ_v e^(z_v − m) − 1 (…) and e^(z_v − m) (…, V).

    The maximum's own 1 is left out of the sum: beside it, a small rest would lose its digits.
    """
    if z.ndim == 0 or z.shape[-1] == 0:
        raise ShapeError(
            f"logits have shape {tuple(z.shape)}; expected (…, V), the last axis over tokens' ids"
        )
    peak = xp.max(z, axis=-1, keepdims=True)
    if 0 not in z.shape and known(xp.any(peak == -math.inf)):
        count = int(xp.sum(xp.astype(peak == -math.inf, xp.int32)))
        raise ValueError(
            f"{count} of {math.prod(z.shape[:-1])} row(s) of logits hold nothing but −inf; at "
            "least one token must be possible"
        )
    # The maximum keeps exp from overflowing and cancels in every use, so it has no gradient.
    peak = constant(peak)
    weights = xp.exp(z - peak)
    highest = xp.expand_dims(xp.argmax(z, axis=-1), axis=-1)
    ids = xp.arange(z.shape[-1], dtype=highest.dtype, device=device(z))
    others = xp.sum(weights - xp.astype(ids == highest, z.dtype), axis=-1)
    return xp.squeeze(peak, axis=-1), others, weights


def _row_sums(log_probs: Any, mask: Any) -> tuple[Any, Any]:
    """Return each row's sum over its selected tokens (…), and how many they are (…)."""
    xp, values = numeric(log_probs)
    m = boolean(xp, mask, like=values)
    same_shape(log_probs=values, mask=m)
    if values.ndim == 0:
        raise ShapeError("log_probs is one number; expected (…, T), the last axis over tokens")
    rows = xp.any(m, axis=-1)
    if known(~xp.all(rows)):
        empty = int(xp.sum(xp.astype(~rows, xp.int32)))
        raise MaskError(
            f"{empty} of {math.prod(rows.shape)} row(s) of a mask {tuple(m.shape)} select no "
            "token; every row needs an answer"
        )
    count = xp.sum(xp.astype(m, values.dtype), axis=-1)
    return xp.sum(xp.where(m, values, 0.0), axis=-1), count


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
    if known(xp.min(targets) < 0):
        raise MaskError(
            f"targets contain {int(xp.min(targets))}; expected token ids from 0 to {vocab - 1}. "
            "Give a real id at positions that don't count, and leave them out by a mask"
        )
    if known(xp.max(targets) >= vocab):
        raise ShapeError(
            f"target {int(xp.max(targets))} does not fit a vocabulary of {vocab} (logits "
            f"{tuple(logits.shape)}); expected ids below it: do the tokenizer and the model belong "
            "together?"
        )
