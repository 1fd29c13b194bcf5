"""Losses of the margin: how much better the chosen answer has become than the rejected one.

Each is a function of one number a pair, the `score_margin` m, scaled by β. So each is blind to
what happens to both answers together: adding a constant to both log-ratios changes nothing.
"""

from __future__ import annotations

import math
from typing import Any

from tunemath.arrays import numeric, plain
from tunemath.objective.preference.inputs import above_zero, smoothing
from tunemath.objective.preference.logistic import logistic_loss, sigmoid, softplus
from tunemath.objective.preference.scores import score_margin

__all__ = [
    "discopop_loss",
    "dpo_loss",
    "exo_pair_loss",
    "hinge_loss",
    "ipo_loss",
    "robust_loss",
    "sigmoid_norm_loss",
]


def dpo_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: float = 0.1,
    *,
    label_smoothing: float = 0.0,
    divergence: str = "reverse_kl",
    alpha: float | None = None,
) -> Any:
    """Return the DPO loss of each pair.

    Let m be the `dpo_margin` and σ the logistic function:
    ``−log σ(β m) = log(1 + exp(−β m))``; and where a share ε of the labels is taken to be wrong,
    ``−(1 − ε) log σ(β m) − ε log σ(−β m)``, least at σ(β m) = 1 − ε (conservative DPO).

    Each array (…) nats, all of one shape; ``beta`` is β > 0 and ``label_smoothing`` 0 ≤ ε < ½,
    without a unit; ``divergence`` and ``alpha`` as in `divergence_score`. Returns (…) nats, one
    value a pair; log 2 while policy and reference are the same model. Finite at any finite margin.

    Valid when both models scored the same tokens, and the reference was not trained.

    >>> round(float(dpo_loss(-4, -6, -5, -5.5, beta=0.2)), 4)
    0.5544

    Source: Rafailov et al. 2023, equation 7; ε from Mitchell 2023, "A note on DPO with noisy
    preferences and relationship to IPO". TRL's ``sigmoid`` loss leaves its label_smoothing unused.
    """
    xp, x = _scaled_margin(
        *(policy_chosen, policy_rejected, reference_chosen, reference_rejected),
        *(beta, divergence, alpha),
    )
    smoothing(label_smoothing)
    return plain(logistic_loss(xp, x, label_smoothing))


def robust_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: float = 0.1,
    *,
    label_smoothing: float = 0.1,
    divergence: str = "reverse_kl",
    alpha: float | None = None,
) -> Any:
    """Return the DPO loss that flipped labels leave unbiased.

    Let m be the margin, ε the probability that a label is flipped and L(m) = −log σ(β m):
    ``((1 − ε) L(m) − ε L(−m)) / (1 − 2ε) = L(m) − β m ε / (1 − 2ε)``. Its mean over the flip,
    (1 − ε) robust(m) + ε robust(−m), is L(m).

    Each array (…) nats, all of one shape; ``beta`` is β > 0 and ``label_smoothing`` 0 ≤ ε < ½,
    without a unit; ``divergence`` and ``alpha`` as in `divergence_score`. Returns (…) nats, one
    value a pair, without a lower bound for ε > 0: far right pairs go on being pushed.

    >>> round(float(robust_loss(-4, -6, -5, -5.5, beta=0.2, label_smoothing=0.1)), 4)
    0.5169

    Source: Chowdhury et al. 2024, "Provably Robust DPO", arXiv 2403.00409. Conservative DPO, the
    ε of `dpo_loss`, adds the flipped loss where this one takes it away.
    """
    xp, x = _scaled_margin(
        *(policy_chosen, policy_rejected, reference_chosen, reference_rejected),
        *(beta, divergence, alpha),
    )
    smoothing(label_smoothing)
    return plain(logistic_loss(xp, x, -label_smoothing / (1.0 - 2.0 * label_smoothing)))


def hinge_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: float = 0.1,
    *,
    divergence: str = "reverse_kl",
    alpha: float | None = None,
) -> Any:
    """Return the hinge loss of each pair.

    Let m be the margin: ``max(0, 1 − β m)``.

    Each array (…) nats, all of one shape; ``beta`` is β > 0, without a unit; ``divergence`` and
    ``alpha`` as in `divergence_score`. Returns (…), without a unit, one value a pair; 0, and of no
    gradient, from m = 1/β on.

    >>> round(float(hinge_loss(-4, -6, -5, -5.5, beta=0.2)), 6)
    0.7

    Source: Liu et al. 2023, "Statistical Rejection Sampling Improves Preference Optimization",
    arXiv 2309.06657. With reference log-probabilities of 0 it's β times the calibration loss
    max(0, δ − log π(c) + log π(r)) of SLiC-HF (Zhao et al. 2023, arXiv 2305.10425), δ = 1/β.
    """
    xp, x = _scaled_margin(
        *(policy_chosen, policy_rejected, reference_chosen, reference_rejected),
        *(beta, divergence, alpha),
    )
    return plain(xp.where(x >= 1.0, 0.0, 1.0 - x))


def ipo_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: float = 0.1,
    *,
    chosen_length: Any = None,
    rejected_length: Any = None,
    divergence: str = "reverse_kl",
    alpha: float | None = None,
) -> Any:
    """Return the squared distance of each margin from its target.

    Let m be the `dpo_margin`, or with lengths the margin per token: ``(m − 1/(2β))²``.

    Each log-probability (…) nats and each length (…) tokens, all of one shape; ``beta`` is the
    paper's τ > 0, without a unit; ``divergence`` and ``alpha`` as in `divergence_score`. Returns
    (…) nats², or (nats a token)² with lengths, one value a pair; 0 at m = 1/(2β).

    >>> round(float(ipo_loss(-4, -6, -5, -5.5, beta=0.1)), 6)
    12.25
    >>> lengths = {"chosen_length": 2, "rejected_length": 5}
    >>> round(float(ipo_loss(-4, -6, -5, -5.5, beta=0.1, **lengths)), 6)
    19.36

    Source: Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human
    Preferences", arXiv 2310.12036, equation 17, of summed log-probabilities. TRL always divides
    by the lengths, so give both to get its loss.
    """
    above_zero(beta=beta)
    margin = score_margin(
        *(policy_chosen, policy_rejected, reference_chosen, reference_rejected),
        divergence=divergence,
        alpha=alpha,
        chosen_length=chosen_length,
        rejected_length=rejected_length,
    )
    _, m = numeric(margin)
    return plain((m - 1.0 / (2.0 * beta)) ** 2)


def exo_pair_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: float = 0.1,
    *,
    label_smoothing: float = 1e-3,
    divergence: str = "reverse_kl",
    alpha: float | None = None,
) -> Any:
    """Return the reverse KL divergence of the policy's preference from the labels'.

    Let m be the margin, p = (σ(β m), σ(−β m)) the policy's preference between the two answers, and
    q = (1 − ε, ε) that of the label: ``KL(p ‖ q) = Σ_k p_k (log p_k − log q_k)``.

    Each array (…) nats, all of one shape; ``beta`` is β > 0 and ``label_smoothing`` 0 < ε < ½,
    without a unit; ``divergence`` and ``alpha`` as in `divergence_score`. Returns (…) nats, one
    value a pair; 0 where σ(β m) = 1 − ε, and at most −log ε.

    Valid when ε > 0: a label that excludes an answer is infinitely far from every policy.

    >>> round(float(exo_pair_loss(-4, -6, -5, -5.5, beta=0.2, label_smoothing=0.1)), 4)
    0.3584

    Source: Ji et al. 2024, "Towards Efficient Exact Optimization of Language Model Alignment",
    arXiv 2402.00856, equation 16. The forward divergence KL(q ‖ p) is conservative DPO less a
    constant.
    """
    xp, x = _scaled_margin(
        *(policy_chosen, policy_rejected, reference_chosen, reference_rejected),
        *(beta, divergence, alpha),
    )
    smoothing(label_smoothing, zero=False)
    chosen = -softplus(xp, -x) - math.log1p(-label_smoothing)
    rejected = -softplus(xp, x) - math.log(label_smoothing)
    return plain(sigmoid(xp, x) * chosen + sigmoid(xp, -x) * rejected)


def discopop_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: float = 0.1,
    *,
    temperature: float = 0.05,
    divergence: str = "reverse_kl",
    alpha: float | None = None,
) -> Any:
    """Return the loss found by a search over programs: a logistic and an exponential, blended.

    Let m be the margin, x = β m and w = σ(x / τ): ``−(1 − w) log σ(x) + w exp(−x)``.

    Each array (…) nats, all of one shape; ``beta`` is β > 0 and ``temperature`` τ > 0, without a
    unit; ``divergence`` and ``alpha`` as in `divergence_score`. Returns (…), one value a pair. Not
    convex: for small τ it has a bump just above m = 0.

    Valid at any finite margin for τ ≤ 1, where w falls faster than exp(−x) grows; for τ > 1 the
    exponential overflows to infinity at far negative margins.

    >>> round(float(discopop_loss(-4, -6, -5, -5.5, beta=0.2)), 4)
    0.7404

    Source: Lu et al. 2024, "Discovering Preference Optimization Algorithms with and for Large
    Language Models", arXiv 2406.08414, equation 5, with its τ = 0.05. TRL multiplies w and exp(−x)
    apart, which is NaN (0 · ∞) below x = −709 (float32: −88).
    """
    xp, x = _scaled_margin(
        *(policy_chosen, policy_rejected, reference_chosen, reference_rejected),
        *(beta, divergence, alpha),
    )
    above_zero(temperature=temperature)
    logistic = sigmoid(xp, -x / temperature) * softplus(xp, -x)
    exponential = xp.exp(-x - softplus(xp, -x / temperature))
    return plain(logistic + exponential)


def sigmoid_norm_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: float = 0.1,
    *,
    chosen_length: Any,
    rejected_length: Any,
    divergence: str = "reverse_kl",
    alpha: float | None = None,
) -> Any:
    """Return the DPO loss of each pair, its margin taken per token.

    Let c and r be the chosen and rejected answers, |·| a length in tokens and s the score of a
    log-ratio: ``−log σ(β (s(c)/|c| − s(r)/|r|))``.

    Each log-probability (…) nats and each length (…) tokens, all of one shape; ``beta`` is β > 0,
    without a unit; ``divergence`` and ``alpha`` as in `divergence_score`. Returns (…) nats, one
    value a pair.

    >>> lengths = {"chosen_length": 2, "rejected_length": 5}
    >>> round(float(sigmoid_norm_loss(-4, -6, -5, -5.5, beta=2.0, **lengths)), 4)
    0.2633

    Source: Lambert et al. 2024, "Tulu 3", arXiv 2411.15124, length-normalised DPO. A mean over
    tokens is smaller than a sum, so β is larger than DPO's; the paper trains with 5.
    """
    above_zero(beta=beta)
    margin = score_margin(
        *(policy_chosen, policy_rejected, reference_chosen, reference_rejected),
        divergence=divergence,
        alpha=alpha,
        chosen_length=chosen_length,
        rejected_length=rejected_length,
    )
    xp, m = numeric(margin)
    return plain(logistic_loss(xp, beta * m))


def _scaled_margin(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: Any,
    divergence: str,
    alpha: Any,
) -> tuple[Any, Any]:
    """Return the array namespace and β m."""
    above_zero(beta=beta)
    margin = score_margin(
        *(policy_chosen, policy_rejected, reference_chosen, reference_rejected),
        divergence=divergence,
        alpha=alpha,
    )
    xp, m = numeric(margin)
    return xp, beta * m
