"""Direct preference optimisation: a classifier of which answer the policy has come to prefer.

Rafailov et al. 2023, "Direct Preference Optimization", arXiv 2305.18290. Inputs are
log-probabilities of whole answers, summed over their tokens (`sequence_log_prob`).
"""

from __future__ import annotations

from typing import Any

from tunemath.arrays import numeric, plain
from tunemath.objective.preference.inputs import above_zero, answers
from tunemath.objective.preference.logistic import sigmoid

__all__ = ["dpo_margin", "gradient_weight", "implicit_reward", "preference_accuracy"]


def dpo_margin(
    policy_chosen: Any, policy_rejected: Any, reference_chosen: Any, reference_rejected: Any
) -> Any:
    """Return by how much the policy prefers the chosen answer more than the reference does.

    Let π be the policy, ρ the reference, c the chosen and r the rejected answer:
    ``(log π(c) − log π(r)) − (log ρ(c) − log ρ(r))``.

    Each argument (…) nats, all of one shape. Returns (…) nats, one value a pair; zero while
    policy and reference are the same model. The implicit reward's margin is β times this.

    >>> float(dpo_margin(-4, -6, -5, -5.5))
    1.5
    """
    _, pc, pr, rc, rr = answers(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    return plain((pc - pr) - (rc - rr))


def implicit_reward(policy: Any, reference: Any, beta: float = 0.1) -> Any:
    """Return the reward of which the policy is the optimum, up to a constant of the prompt.

    Let π be the policy, ρ the reference and y an answer: ``β (log π(y) − log ρ(y))``.

    Each array (…) nats, of one shape; ``beta`` is β > 0, without a unit. Returns (…), without a
    unit: rewards of answers to one prompt may be compared, those of two prompts may not.

    >>> round(float(implicit_reward(-4, -5, beta=0.2)), 6)
    0.2

    Source: Rafailov et al. 2023, equation 5; the constant is β log Z of the prompt.
    """
    above_zero(beta=beta)
    _, p, r = answers(policy=policy, reference=reference)
    return plain(beta * (p - r))


def preference_accuracy(margin: Any) -> Any:
    """Return whether each pair is told apart the right way: 1, ½ for a tie, or 0.

    Let m be a margin of any kind: ``(1 + sign m) / 2``.

    ``margin`` (…) in any unit. Returns (…), without a unit; its mean is the accuracy. A tie counts
    as a coin would: before the first step every margin is 0, and the accuracy one half. There TRL
    shows 0, as it counts a tie as wrong.

    >>> preference_accuracy([1.5, 0.0, -2.0]).tolist()
    [1.0, 0.5, 0.0]
    """
    xp, m = numeric(margin)
    return plain((1.0 + xp.sign(m)) / 2.0)


def gradient_weight(margin: Any, beta: float = 0.1) -> Any:
    """Return how strongly DPO pushes each pair apart: −∂loss/∂margin.

    Let m be the `dpo_margin`: ``β σ(−β m)``, near β while the policy has the pair the wrong way
    round, and near 0 once it's far the right way.

    ``margin`` (…) nats; ``beta`` is β > 0, without a unit. Returns (…), without a unit.

    >>> [round(w, 5) for w in gradient_weight([0.0, 10.0], beta=0.1).tolist()]
    [0.05, 0.02689]

    Source: Rafailov et al. 2023, the gradient below equation 7.
    """
    above_zero(beta=beta)
    xp, m = numeric(margin)
    return plain(beta * sigmoid(xp, -beta * m))
