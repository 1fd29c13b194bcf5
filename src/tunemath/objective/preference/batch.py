"""Losses of a batch as a whole: alignment by optimal transport, which compares sorted samples.

Melnyk et al. 2024, "Distributional Preference Alignment of LLMs via Optimal Transport",
arXiv 2406.05882. Stochastic dominance asks that every quantile of one sample lie above that of the
other; in one dimension, sorting pairs the quantiles.
"""

from __future__ import annotations

from typing import Any

from tunemath.arrays import plain
from tunemath.errors import ShapeError
from tunemath.objective.preference.inputs import above_zero, answers, smoothing
from tunemath.objective.preference.logistic import logistic_loss

__all__ = ["aot_loss", "aot_unpaired_loss"]


def aot_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: float = 0.1,
    *,
    label_smoothing: float = 0.0,
) -> Any:
    """Return the loss of each rank: the policy's preferences should dominate the reference's.

    Let a₍ᵢ₎ be the i-th smallest of log π(c) − log π(r) in the batch, b₍ᵢ₎ of log ρ(c) − log ρ(r),
    and x = β (a₍ᵢ₎ − b₍ᵢ₎): ``−(1 − ε) log σ(x) − ε log σ(−x)``.

    Each array (B, …) nats, all of one shape, sorted along the first axis; ``beta`` is β > 0 and
    ``label_smoothing`` 0 ≤ ε < ½, without a unit. Returns (B, …) nats, one value a rank, not a
    pair: the i-th need not belong to the i-th pair. With B = 1 it's `dpo_loss`.

    Valid for the batch it is given: cut into micro-batches, the quantiles and so the loss differ.

    >>> loss = aot_loss([-4.0, -1.0], [-6.0, -3.5], [-5.0, -2.0], [-5.5, -4.0], beta=0.2)
    >>> [round(x, 4) for x in loss.tolist()]
    [0.5544, 0.6444]

    Source: Melnyk et al. 2024, AOT paired, with the logistic surrogate; ε is TRL's addition.
    """
    xp, pc, pr, rc, rr = _batch(
        *(policy_chosen, policy_rejected, reference_chosen, reference_rejected),
        *(beta, label_smoothing),
    )
    difference = xp.sort(pc - pr, axis=0) - xp.sort(rc - rr, axis=0)
    return plain(logistic_loss(xp, beta * difference, label_smoothing))


def aot_unpaired_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: float = 0.1,
    *,
    label_smoothing: float = 0.0,
) -> Any:
    """Return the loss of each rank: chosen answers' log-ratios should dominate rejected ones'.

    Let c₍ᵢ₎ be the i-th smallest of log π(c) − log ρ(c) in the batch, r₍ᵢ₎ of log π(r) − log ρ(r),
    and x = β (c₍ᵢ₎ − r₍ᵢ₎): ``−(1 − ε) log σ(x) − ε log σ(−x)``.

    Each array (B, …) nats, all of one shape, sorted along the first axis; ``beta`` is β > 0 and
    ``label_smoothing`` 0 ≤ ε < ½, without a unit. Returns (B, …) nats, one value a rank. With
    B = 1 it's `dpo_loss`.

    Valid for the batch it is given: cut into micro-batches, the quantiles and so the loss differ.
    Chosen and rejected answers may belong to different prompts, but there must be as many of each.

    >>> loss = aot_unpaired_loss([-4.0, -1.0], [-6.0, -3.5], [-5.0, -3.0], [-5.5, -4.0], beta=0.2)
    >>> [round(x, 4) for x in loss.tolist()]
    [0.5544, 0.5544]

    Source: Melnyk et al. 2024, AOT unpaired, with the logistic surrogate; ε is TRL's addition.
    """
    xp, pc, pr, rc, rr = _batch(
        *(policy_chosen, policy_rejected, reference_chosen, reference_rejected),
        *(beta, label_smoothing),
    )
    difference = xp.sort(pc - rc, axis=0) - xp.sort(pr - rr, axis=0)
    return plain(logistic_loss(xp, beta * difference, label_smoothing))


def _batch(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    beta: Any,
    label_smoothing: Any,
) -> tuple[Any, ...]:
    """Return the array namespace and the log-probabilities, which must have a first axis."""
    above_zero(beta=beta)
    smoothing(label_smoothing)
    xp, *arrays = answers(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    if arrays[0].ndim == 0:
        raise ShapeError("the log-probabilities are single numbers; expected (B, …), a batch")
    return xp, *arrays
