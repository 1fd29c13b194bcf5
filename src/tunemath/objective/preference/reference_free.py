"""Losses without a reference model: the policy's own log-probability is the reward.

Each is the preference term of its paper. The term that keeps the policy near good answers in place
of a reference, `chosen_nll`, comes apart: it's a mean over tokens or answers with a weight of its
own, so the two are reduced each by itself and added once, ``mean(preference) + α · mean(nll)``.
"""

from __future__ import annotations

from typing import Any

from tunemath.arrays import known, number, numeric, plain
from tunemath.objective.preference.inputs import (
    above_zero,
    answers,
    finite,
    smoothing,
    token_counts,
)
from tunemath.objective.preference.logistic import logistic_loss, softplus
from tunemath.objective.preference.scores import power_score

__all__ = [
    "alphapo_loss",
    "chosen_nll",
    "cpo_loss",
    "odds_ratio_loss",
    "simpo_loss",
    "tpo_l_loss",
    "tpo_loss",
]


def chosen_nll(policy_chosen: Any) -> Any:
    """Return the negative log-likelihood of each chosen answer: −log π(c).

    ``policy_chosen`` (…) nats, summed over tokens. Returns (…) nats, one value an answer. The mean
    over answers is CPO's and TPO's second term; the sum divided by all answers' tokens, with
    `pooled_mean` of ``(sum, tokens)``, is SFT on chosen answers (TRL's ``sft`` loss, and the second
    term of its CPO, ORPO and TPO trainers).

    >>> chosen_nll([-4.0, -6.0]).tolist()
    [4.0, 6.0]
    """
    _, chosen = numeric(policy_chosen)
    return plain(-chosen)


def cpo_loss(
    policy_chosen: Any, policy_rejected: Any, beta: float = 0.1, *, label_smoothing: float = 0.0
) -> Any:
    """Return the preference term of contrastive preference optimisation: DPO, a uniform reference.

    Let x = β (log π(c) − log π(r)): ``−(1 − ε) log σ(x) − ε log σ(−x)``.

    Each array (…) nats, of one shape; ``beta`` is β > 0 and ``label_smoothing`` 0 ≤ ε < ½, without
    a unit. Returns (…) nats, one value a pair. The objective adds the mean of `chosen_nll`.

    >>> round(float(cpo_loss(-4, -6, beta=0.2)), 4)
    0.513

    Source: Xu et al. 2024, "Contrastive Preference Optimization", arXiv 2401.08417, equation 3; ε
    is TRL's addition. The paper's second term is a sum over tokens, TRL's a mean (``cpo_alpha``).
    """
    above_zero(beta=beta)
    smoothing(label_smoothing)
    xp, chosen, rejected = answers(policy_chosen=policy_chosen, policy_rejected=policy_rejected)
    return plain(logistic_loss(xp, beta * (chosen - rejected), label_smoothing))


def tpo_loss(
    policy_chosen: Any, policy_rejected: Any, beta: float = 0.01, *, label_smoothing: float = 0.0
) -> Any:
    """Return the preference term of triple preference optimisation: that of `cpo_loss`.

    Arguments and value are those of `cpo_loss`. What differs is the second term: `chosen_nll` of a
    third, gold answer, times α.

    >>> round(float(tpo_loss(-4, -6, beta=0.2)), 4)
    0.513

    Source: Saeidi et al. 2024, "Triple Preference Optimization", arXiv 2405.16681.
    """
    return cpo_loss(policy_chosen, policy_rejected, beta, label_smoothing=label_smoothing)


def simpo_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    chosen_length: Any,
    rejected_length: Any,
    beta: float = 2.0,
    *,
    gamma: float = 1.0,
    label_smoothing: float = 0.0,
) -> Any:
    """Return the SimPO loss of each pair.

    Let |·| be a length in tokens, γ a target margin and
    x = β (log π(c)/|c| − log π(r)/|r|) − γ: ``−(1 − ε) log σ(x) − ε log σ(−x)``.

    Each log-probability (…) nats, a sum over tokens, and each length (…) tokens, all of one shape;
    ``beta`` is β > 0, ``gamma`` γ and ``label_smoothing`` 0 ≤ ε < ½, without a unit. Returns (…)
    nats, one value a pair.

    >>> round(float(simpo_loss(-4, -6, 4, 4, beta=2.0, gamma=1.0)), 4)
    0.6931

    Source: Meng et al. 2024, "SimPO", arXiv 2405.14734, equation 6, where ε = 0. γ is the paper's
    and TRL's (``simpo_gamma``); its code names γ/β, which it sets to 0.5.
    """
    return alphapo_loss(
        *(policy_chosen, policy_rejected, chosen_length, rejected_length, beta),
        gamma=gamma,
        alpha=0.0,
        label_smoothing=label_smoothing,
    )


def alphapo_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    chosen_length: Any,
    rejected_length: Any,
    beta: float = 2.0,
    *,
    gamma: float = 1.0,
    alpha: float = 0.25,
    label_smoothing: float = 0.0,
) -> Any:
    """Return the AlphaPO loss of each pair: SimPO with another shape of reward.

    Let u(y) = log π(y)/|y|, s(y) = (1 − exp(−α u(y))) / α, or u(y) for α = 0, and
    x = β (s(c) − s(r)) − γ: ``−(1 − ε) log σ(x) − ε log σ(−x)``.

    Each log-probability (…) nats, a sum over tokens, and each length (…) tokens, all of one shape;
    ``beta`` is β > 0, ``gamma`` γ, ``alpha`` α and ``label_smoothing`` 0 ≤ ε < ½, without a unit.
    Returns (…) nats, one value a pair; `simpo_loss` for α = 0.

    Valid when −α u stays below 709 (float32: 88), beyond which s overflows.

    >>> round(float(alphapo_loss(-4, -6, 4, 4, beta=2.0, gamma=1.0, alpha=0.25)), 4)
    0.5261

    Source: Gupta et al. 2025, "AlphaPO: Reward Shape Matters for LLM Alignment",
    arXiv 2501.03884, where ε = 0.
    """
    above_zero(beta=beta)
    finite(gamma=gamma, alpha=alpha)
    smoothing(label_smoothing)
    xp, chosen, rejected = _token_means(
        policy_chosen, policy_rejected, chosen_length, rejected_length
    )
    margin = power_score(xp, chosen, alpha) - power_score(xp, rejected, alpha)
    return plain(logistic_loss(xp, beta * margin - gamma, label_smoothing))


def tpo_l_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    chosen_length: Any,
    rejected_length: Any,
    beta: float = 0.01,
    *,
    gamma: float = 0.5,
    label_smoothing: float = 0.0,
) -> Any:
    """Return the preference term of TPO-L: that of `simpo_loss`.

    Arguments and value are those of `simpo_loss`. The second term is `chosen_nll` of a third, gold
    answer, times α.

    >>> round(float(tpo_l_loss(-4, -6, 4, 4, beta=2.0, gamma=1.0)), 4)
    0.6931

    Source: Saeidi et al. 2024, "Triple Preference Optimization", arXiv 2405.16681, TPO-L.
    """
    return simpo_loss(
        *(policy_chosen, policy_rejected, chosen_length, rejected_length, beta),
        gamma=gamma,
        label_smoothing=label_smoothing,
    )


def odds_ratio_loss(
    policy_chosen: Any, policy_rejected: Any, chosen_length: Any, rejected_length: Any
) -> Any:
    """Return the odds-ratio term of ORPO.

    Let |·| be a length in tokens, u = log π(y)/|y| the mean log-probability of a token, and
    log odds(y) = u − log(1 − exp u): ``−log σ(log odds(c) − log odds(r))``.

    Each log-probability (…) nats, a sum over tokens, and each length (…) tokens, all of one shape.
    Returns (…) nats, one value a pair. The objective is the mean of the chosen answers' negative
    log-likelihood plus λ times the mean of this (0.1 in the paper; TRL calls it ``beta``).

    Valid when each log-probability is below 0: at probability 1 the odds are infinite, and the
    gradient isn't a number. Above 0 raises.

    >>> round(float(odds_ratio_loss(-4, -6, 4, 4)), 4)
    0.4011

    Source: Hong et al. 2024, "ORPO", arXiv 2403.07691, equations 4 and 7. TRL computes in float32,
    and takes its first term over prompt and answer, where the paper has the answer alone.
    """
    xp, chosen, rejected = _token_means(
        policy_chosen, policy_rejected, chosen_length, rejected_length
    )
    for name, u in (("policy_chosen", chosen), ("policy_rejected", rejected)):
        if known(xp.any(u > 0)):
            raise ValueError(
                f"{name} holds a mean log-probability of {number(xp.max(u)):g}; expected 0 or less"
            )
    # 1 − exp u without cancellation near u = 0; far below, its logarithm vanishes beside u.
    log_odds = [u - xp.log(-xp.expm1(u)) for u in (chosen, rejected)]
    return plain(softplus(xp, log_odds[1] - log_odds[0]))


def _token_means(
    policy_chosen: Any, policy_rejected: Any, chosen_length: Any, rejected_length: Any
) -> tuple[Any, ...]:
    """Return the array namespace, and both answers' mean log-probability of a token."""
    xp, chosen, rejected = answers(policy_chosen=policy_chosen, policy_rejected=policy_rejected)
    chosen_count, rejected_count = token_counts(
        xp, chosen, chosen_length=chosen_length, rejected_length=rejected_length
    )
    return xp, chosen / chosen_count, rejected / rejected_count
