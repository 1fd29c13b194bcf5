"""What stands for log π/ρ when the policy is kept near the reference by another divergence.

Wang et al. 2023, "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse
Divergence Constraints", arXiv 2309.16240. For the divergence E_ρ[f(π/ρ)] the implicit reward is
β f′(π/ρ) up to a constant of the prompt, so f′ replaces the log-ratio in any loss of a margin.
"""

from __future__ import annotations

from typing import Any

from tunemath.arrays import numeric, plain
from tunemath.objective.preference.inputs import answers, finite, token_counts, unknown_name
from tunemath.objective.preference.margin import dpo_margin

__all__ = ["divergence_score", "power_score", "score_margin"]

_POWERS = {"reverse_kl": 0.0, "forward_kl": 1.0, "alpha_divergence": None}


def divergence_score(
    log_ratio: Any, divergence: str = "reverse_kl", alpha: float | None = None
) -> Any:
    """Return f′(t), the score of an answer under an f-divergence.

    Let t = π(y)/ρ(y) and u = log t, the log-ratio:

    - ``reverse_kl``: ``u``, DPO's own
    - ``forward_kl``: ``1 − 1/t``
    - ``js_divergence``: ``log(2t / (1 + t))``
    - ``alpha_divergence``: ``(1 − t^−α) / α``, reverse KL at α = 0 and forward KL at α = 1.

    ``log_ratio`` (…) nats; ``alpha`` is α, for ``alpha_divergence`` alone. Returns (…) nats, 0 and
    of slope 1 at u = 0 (Jensen–Shannon's slope is ½).

    Valid when −α u stays below 709 (float32: 88; α = 1 for forward KL). Beyond, the score overflows
    to −∞, and the margin of two such answers is NaN.

    >>> [round(float(divergence_score(0.5, d)), 4) for d in ("forward_kl", "js_divergence")]
    [0.3935, 0.2191]
    >>> round(float(divergence_score(0.5, "alpha_divergence", alpha=0.5)), 4)
    0.4424

    Source: Wang et al. 2023, table 1, less a constant that makes f′(1) = 0. TRL's
    ``f_alpha_divergence_coef`` is 1 − α, and it clamps (α-divergence only) where we overflow.
    """
    xp, u = numeric(log_ratio)
    _check(divergence, alpha)
    if divergence == "js_divergence":
        # log 2 − log(1 + 1/t), by whichever of e^u and e^−u is at most 1: nothing cancels at 0.
        up, down = xp.where(u >= 0, u, 0.0), xp.where(u < 0, u, 0.0)
        return plain(down - xp.log1p(xp.expm1(xp.where(u >= 0, -up, down)) / 2.0))
    power = _POWERS[divergence]
    return plain(power_score(xp, u, alpha if power is None else power))


def power_score(xp: Any, u: Any, alpha: Any) -> Any:
    """Return (1 − exp(−α u)) / α, or its limit u for α = 0, without cancellation."""
    return u if alpha == 0 else -xp.expm1(-alpha * u) / alpha


def score_margin(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    *,
    divergence: str = "reverse_kl",
    alpha: float | None = None,
    chosen_length: Any = None,
    rejected_length: Any = None,
) -> Any:
    """Return the margin of two scores: the `dpo_margin`, under another divergence or per token.

    Let s be the `divergence_score` of a log-ratio, c the chosen and r the rejected answer, and
    |·| a length in tokens: ``s(c) − s(r)``, or with lengths ``s(c)/|c| − s(r)/|r|``.

    Each log-probability (…) nats and each length (…) tokens, all of one shape. Returns (…) nats,
    or nats a token, one value a pair.

    >>> float(score_margin(-4, -6, -5, -5.5, chosen_length=2, rejected_length=5))
    0.6

    Lengths divide the score, as in TRL; for reverse KL alone is that a mean over tokens.
    """
    _check(divergence, alpha)
    lengths = {"chosen_length": chosen_length, "rejected_length": rejected_length}
    given = [name for name, length in lengths.items() if length is not None]
    if len(given) == 1:
        raise ValueError(f"only {given[0]} is given; give both lengths, or neither for sums")
    if divergence == "reverse_kl" and not given:
        return dpo_margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    xp, pc, pr, rc, rr = answers(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    _, chosen, rejected = numeric(
        divergence_score(pc - rc, divergence, alpha), divergence_score(pr - rr, divergence, alpha)
    )
    if given:
        chosen_count, rejected_count = token_counts(xp, chosen, **lengths)
        chosen, rejected = chosen / chosen_count, rejected / rejected_count
    return plain(chosen - rejected)


def _check(divergence: str, alpha: Any) -> None:
    """Refuse an unknown divergence, a missing α, and an α that would do nothing."""
    if divergence != "js_divergence" and divergence not in _POWERS:
        raise unknown_name("divergence", divergence, ["js_divergence", *_POWERS])
    if divergence != "alpha_divergence":
        if alpha is not None:
            raise ValueError(
                f"alpha has no meaning for {divergence}; remove it, or write "
                "divergence='alpha_divergence'"
            )
    elif alpha is None:
        raise ValueError("alpha_divergence needs alpha, such as 0.5")
    else:
        finite(alpha=alpha)
