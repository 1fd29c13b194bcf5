"""Direct preference optimisation: a classifier of which answer the policy has come to prefer.

Rafailov et al. 2023, "Direct Preference Optimization", arXiv 2305.18290. Inputs are
log-probabilities of whole answers, summed over their tokens (`sequence_log_prob`).
"""

from __future__ import annotations

from typing import Any

from tunemath.arrays import numeric, plain, same_shape

__all__ = ["dpo_loss", "dpo_margin"]


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
    _, pc, pr, rc, rr = numeric(
        policy_chosen, policy_rejected, reference_chosen, reference_rejected
    )
    same_shape(policy_chosen=pc, policy_rejected=pr, reference_chosen=rc, reference_rejected=rr)
    return plain((pc - pr) - (rc - rr))


def dpo_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: float = 0.1,
) -> Any:
    """Return the DPO loss of each pair.

    Let m be the `dpo_margin` and σ the logistic function:
    ``−log σ(β m) = log(1 + exp(−β m))``.

    Each array (…) nats, all of one shape; ``beta`` is β > 0, without a unit. Returns (…) nats, one
    value a pair; log 2 while policy and reference are the same model. Finite at any finite margin.

    Valid when both models scored the same tokens, and the reference was not trained.

    >>> round(float(dpo_loss(-4, -6, -5, -5.5, beta=0.2)), 4)
    0.5544

    Source: Rafailov et al. 2023, equation 7.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta!r}; expected a number above 0, such as 0.1")
    margin = dpo_margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    xp, x = numeric(margin)
    # logaddexp(0, −x) = log(1 + exp(−x)) without overflow, and differentiable at x = 0.
    return plain(xp.logaddexp(xp.zeros_like(x), -beta * x))
