"""Losses that hold each answer against zero, not the two against each other.

Each is a function of both rewards, β (log π − log ρ) of the chosen and of the rejected answer. So,
unlike a loss of the margin, each can say whether the chosen answer itself should become likelier.
"""

from __future__ import annotations

from typing import Any

from tunemath.arrays import plain
from tunemath.objective.preference.inputs import above_zero, answers
from tunemath.objective.preference.logistic import sigmoid, softplus

__all__ = [
    "apo_down_loss",
    "apo_zero_loss",
    "bco_pair_loss",
    "nca_pair_loss",
    "sppo_hard_loss",
]


def nca_pair_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: float = 0.1,
) -> Any:
    """Return the noise-contrastive loss of each pair: push the chosen answer up, both down a half.

    Let c and r be the rewards β (log π − log ρ) of the chosen and the rejected answer:
    ``−log σ(c) − ½ log σ(−c) − ½ log σ(−r)``.

    Each array (…) nats, all of one shape; ``beta`` is β > 0, without a unit. Returns (…) nats, one
    value a pair; 2 log 2 while policy and reference are the same model.

    >>> round(float(nca_pair_loss(-4, -6, -5, -5.5, beta=0.2)), 4)
    1.3194

    Source: Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit
    Rewards", arXiv 2402.05369, NCA with two answers, of which one has all the weight.
    """
    xp, c, r = _rewards(
        *(policy_chosen, policy_rejected, reference_chosen, reference_rejected), beta
    )
    return plain(softplus(xp, -c) + 0.5 * softplus(xp, c) + 0.5 * softplus(xp, r))


def bco_pair_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: float = 0.1,
) -> Any:
    """Return the loss of a classifier that calls chosen answers good and rejected ones bad.

    Let c and r be the rewards β (log π − log ρ) of the chosen and the rejected answer:
    ``−log σ(c) − log σ(−r)``.

    Each array (…) nats, all of one shape; ``beta`` is β > 0, without a unit. Returns (…) nats, one
    value a pair, above `dpo_loss`; 2 log 2 while policy and reference are the same model.

    >>> round(float(bco_pair_loss(-4, -6, -5, -5.5, beta=0.2)), 4)
    1.2425

    Source: Jung et al. 2024, "Binary Classifier Optimization", arXiv 2404.04656, with its reward
    shift δ at 0, as in TRL; `bco_loss` has δ, which brings the bound closer.
    """
    xp, c, r = _rewards(
        *(policy_chosen, policy_rejected, reference_chosen, reference_rejected), beta
    )
    return plain(softplus(xp, -c) + softplus(xp, r))


def sppo_hard_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: float = 0.1,
) -> Any:
    """Return the squared distances of both log-ratios from those of a sure win and a sure loss.

    Let c and r be the log-ratios log π − log ρ of the chosen and the rejected answer:
    ``(c − 1/(2β))² + (r + 1/(2β))²``.

    Each array (…) nats, all of one shape; ``beta`` is β > 0, without a unit, the paper's 1/η.
    Returns (…) nats², one value a pair; 0 at c = −r = 1/(2β).

    >>> float(sppo_hard_loss(-4, -6, -5, -5.5, beta=0.5))
    0.25

    Source: Wu et al. 2024, "Self-Play Preference Optimization", arXiv 2405.00675, equation 4.7,
    with win probabilities of 1 and 0 where the paper takes a preference model's.
    """
    _, c, r = _rewards(
        *(policy_chosen, policy_rejected, reference_chosen, reference_rejected), beta
    )
    return plain(((c - 0.5) / beta) ** 2 + ((r + 0.5) / beta) ** 2)


def apo_zero_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: float = 0.1,
) -> Any:
    """Return the anchored loss for chosen answers that are better than the model's own.

    Let c and r be the rewards β (log π − log ρ) of the chosen and the rejected answer:
    ``σ(−c) + σ(r)``, which is least where c has risen and r has fallen.

    Each array (…) nats, all of one shape; ``beta`` is β > 0, without a unit. Returns (…) from 0 to
    2, without a unit, one value a pair; 1 while policy and reference are the same model.

    >>> round(float(apo_zero_loss(-4, -6, -5, -5.5, beta=0.2)), 4)
    0.9252

    Source: D'Oosterlinck et al. 2024, "Anchored Preference Optimization and Contrastive
    Revisions", arXiv 2408.06266, equation 7, plus 1 as in TRL, which keeps it above 0.
    """
    xp, c, r = _rewards(
        *(policy_chosen, policy_rejected, reference_chosen, reference_rejected), beta
    )
    return plain(sigmoid(xp, -c) + sigmoid(xp, r))


def apo_down_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: float = 0.1,
) -> Any:
    """Return the anchored loss for chosen answers that are worse than the model's own.

    Let c and r be the rewards β (log π − log ρ) of the chosen and the rejected answer:
    ``σ(c) + σ(r − c)``, which is least where c has fallen and r has fallen further.

    Each array (…) nats, all of one shape; ``beta`` is β > 0, without a unit. Returns (…) from 0 to
    2, without a unit, one value a pair; 1 while policy and reference are the same model.

    >>> round(float(apo_down_loss(-4, -6, -5, -5.5, beta=0.2)), 4)
    0.9754

    Source: D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 8, plus 1 as in TRL.
    """
    xp, c, r = _rewards(
        *(policy_chosen, policy_rejected, reference_chosen, reference_rejected), beta
    )
    return plain(sigmoid(xp, c) + sigmoid(xp, r - c))


def _rewards(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: Any,
) -> tuple[Any, ...]:
    """Return the array namespace, and the rewards of the chosen and the rejected answers."""
    above_zero(beta=beta)
    xp, pc, pr, rc, rr = answers(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    return xp, beta * (pc - rc), beta * (pr - rr)
