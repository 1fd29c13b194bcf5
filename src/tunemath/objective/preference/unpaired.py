"""Losses of single answers, each desirable or not, without a partner to compare with.

Each holds an answer's reward against a point that belongs to the batch: KTO's is an estimate of
how far the policy has moved, BCO's lies midway between good and bad. No gradient flows into it.
"""

from __future__ import annotations

import math
from typing import Any

from tunemath.arrays import boolean, constant, known, number, numeric, plain, same_shape
from tunemath.errors import MaskError
from tunemath.objective.preference.inputs import above_zero, answers, one_number
from tunemath.objective.preference.logistic import sigmoid, softplus

__all__ = [
    "apo_zero_unpaired_loss",
    "bco_loss",
    "bco_shift",
    "kto_loss",
    "kto_reference_point",
]


def kto_reference_point(policy_mismatched: Any, reference_mismatched: Any) -> Any:
    """Return KTO's reference point: how far the policy has moved on answers to other prompts.

    Let y′ be an answer of the batch put to a prompt that it doesn't belong to:
    ``max(0, mean(log π(y′) − log ρ(y′)))``, a rough estimate of KL(π ‖ ρ).

    Each array (…) nats, of one shape. Returns a 0-d array in nats, at least 0, without gradient.

    Valid for the answers it is given: a mean over all ranks and micro-batches needs all of them.

    >>> float(kto_reference_point([-4.0, -6.0], [-5.0, -6.5]))
    0.75

    Source: Ethayarajh et al. 2024, "KTO", arXiv 2402.01306, section 4.1.
    """
    xp, p, r = answers(
        policy_mismatched=policy_mismatched, reference_mismatched=reference_mismatched
    )
    if math.prod(p.shape) == 0:
        raise MaskError("there are no mismatched answers; give one or more for the mean")
    mean = xp.mean(constant(p) - constant(r))
    return plain(xp.where(mean < 0, xp.zeros_like(mean), mean))


def kto_loss(
    policy: Any,
    reference: Any,
    desirable: Any,
    kl: Any,
    beta: float = 0.1,
    *,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Any:
    """Return the KTO loss of each answer.

    Let u = log π(y) − log ρ(y) and z the reference point: ``w₊ σ(−β (u − z))`` for a desirable
    answer, ``w₋ σ(β (u − z))`` for an undesirable one.

    ``policy`` and ``reference`` (…) nats and ``desirable`` (…) booleans or 0/1, all of one shape;
    ``kl`` is z ≥ 0, one number in nats (`kto_reference_point`), taken as a constant; ``beta`` is
    β > 0 and the weights w₊ and w₋ are above 0, without a unit. Returns (…) from 0 to the
    weight, without a unit; half the weight at u = z.

    Valid when the weights balance the labels: with n₊ and n₋ of each, w₊ n₊ near w₋ n₋.

    >>> [round(x, 4) for x in kto_loss([-4.0, -6.0], [-5.0, -5.5], [1, 0], 0.5, 0.2).tolist()]
    [0.475, 0.4502]

    Source: Ethayarajh et al. 2024, "KTO", arXiv 2402.01306, equation 7, whose λ are our weights.
    """
    above_zero(beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    xp, good, u = _log_ratios(policy, reference, desirable)
    _, _, z = numeric(u, kl)
    one_number(kl=z)
    if known(z >= 0) is False:
        raise ValueError(
            f"kl is {number(z):g}; expected a number of nats of 0 or more (kto_reference_point)"
        )
    x = beta * (u - xp.astype(constant(z), u.dtype, copy=False))
    return plain(
        xp.where(good, desirable_weight * sigmoid(xp, -x), undesirable_weight * sigmoid(xp, x))
    )


def apo_zero_unpaired_loss(
    policy: Any,
    reference: Any,
    desirable: Any,
    beta: float = 0.1,
    *,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Any:
    """Return APO-zero's loss of each answer: `kto_loss` with its reference point at 0.

    Let u = log π(y) − log ρ(y): ``w₊ σ(−β u)`` for a desirable answer, ``w₋ σ(β u)`` for an
    undesirable one; the two of a pair add up to `apo_zero_loss`.

    ``policy`` and ``reference`` (…) nats and ``desirable`` (…) booleans or 0/1, all of one shape;
    ``beta`` is β > 0 and the weights are above 0, without a unit. Returns (…), without a unit.

    >>> loss = apo_zero_unpaired_loss([-4.0, -6.0], [-5.0, -5.5], [1, 0], beta=0.2)
    >>> [round(x, 4) for x in loss.tolist()]
    [0.4502, 0.475]

    Source: D'Oosterlinck et al. 2024, arXiv 2408.06266, equation 7, taken apart as in TRL.
    """
    return kto_loss(
        *(policy, reference, desirable, 0.0, beta),
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )


def bco_shift(policy: Any, reference: Any, desirable: Any, beta: float = 0.1) -> Any:
    """Return BCO's reward shift: the point midway between good and bad answers' mean rewards.

    Let r₊ be the rewards β (log π − log ρ) of the desirable answers and r₋ of the others:
    ``δ = (mean r₊ + mean r₋) / 2``.

    ``policy`` and ``reference`` (…) nats and ``desirable`` (…) booleans or 0/1, all of one shape;
    ``beta`` is β > 0, without a unit. Returns a 0-d array, without a unit and without gradient.
    Answers of one kind alone raise: the other's mean is no number.

    Valid for the answers it is given; in training δ is a running mean over the steps.

    >>> round(float(bco_shift([-4.0, -6.0, -2.0], [-5.0, -5.5, -4.0], [1, 0, 1], beta=0.2)), 6)
    0.1

    Source: Jung et al. 2024, "Binary Classifier Optimization", arXiv 2404.04656, where δ makes the
    bound on DPO's loss tight.
    """
    above_zero(beta=beta)
    xp, good, u = _log_ratios(policy, reference, desirable)
    count, size = xp.sum(xp.astype(good, u.dtype)), math.prod(u.shape)
    if known((count == 0) | (count == size)):
        raise MaskError(
            f"{number(count):g} of {size} answers are desirable; expected one or more of each kind"
        )
    reward = beta * constant(u)
    above = xp.sum(xp.where(good, reward, 0.0)) / count
    below = xp.sum(xp.where(good, 0.0, reward)) / (size - count)
    return plain((above + below) / 2.0)


def bco_loss(
    policy: Any,
    reference: Any,
    desirable: Any,
    shift: Any,
    beta: float = 0.1,
    *,
    importance: Any = None,
) -> Any:
    """Return the loss of a classifier that tells desirable answers from undesirable ones.

    Let x = β (log π(y) − log ρ(y)) − δ and w a weight: ``−w log σ(x)`` for a desirable answer,
    ``−w log σ(−x)`` for an undesirable one.

    ``policy`` and ``reference`` (…) nats and ``desirable`` (…) booleans or 0/1, all of one shape;
    ``shift`` is δ, one number without a unit (`bco_shift`), and ``importance`` w ≥ 0 (…), 1 when
    not given; both are constants; ``beta`` is β > 0. Returns (…) nats, one value an
    answer. With δ = 0 the two of a pair add up to `bco_pair_loss`.

    Where the two kinds come from different prompts, w is 1 on desirable answers, and on the others
    the density of their prompt among the desirable ones' over that among the undesirable ones'.

    >>> loss = bco_loss([-4.0, -6.0], [-5.0, -5.5], [1, 0], shift=0.1, beta=0.2)
    >>> [round(x, 4) for x in loss.tolist()]
    [0.6444, 0.5981]

    Source: Jung et al. 2024, "Binary Classifier Optimization", arXiv 2404.04656, the loss with
    reward shift and underlying distribution matching.
    """
    above_zero(beta=beta)
    xp, good, u = _log_ratios(policy, reference, desirable)
    _, _, delta = numeric(u, shift)
    one_number(shift=delta)
    x = beta * u - xp.astype(constant(delta), u.dtype, copy=False)
    loss = softplus(xp, xp.where(good, -x, x))
    if importance is None:
        return plain(loss)
    _, _, weight = numeric(u, importance)
    same_shape(importance=weight, policy=u)
    if known(xp.all((weight >= 0) & (weight < math.inf))) is False:
        raise ValueError(
            "importance holds negative numbers, infinity or NaN; expected weights of 0 or more"
        )
    return plain(xp.astype(constant(weight), u.dtype, copy=False) * loss)


def _log_ratios(policy: Any, reference: Any, desirable: Any) -> tuple[Any, Any, Any]:
    """Return the array namespace, which answers are desirable, and log π − log ρ of each."""
    xp, p, r = answers(policy=policy, reference=reference)
    good = boolean(xp, desirable, like=p)
    same_shape(policy=p, desirable=good)
    return xp, good, p - r
