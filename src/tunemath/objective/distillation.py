"""Distillation: a student learns the whole distribution of a teacher, position by position."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from tunemath.arrays import constant, numeric, plain
from tunemath.objective.divergence import (
    check_outcomes,
    js_divergence,
    skewed_kl,
    total_variation,
)
from tunemath.objective.logits_divergence import check_possible, kl_from_logits

__all__ = ["Divergence", "distillation_loss"]

Divergence = Literal[
    "forward_kl", "reverse_kl", "js", "skewed_forward_kl", "skewed_reverse_kl", "total_variation"
]

_WEIGHT = 0.5
_SKEW = 0.1


def distillation_loss(
    student_logits: Any,
    teacher_logits: Any,
    *,
    divergence: Divergence = "forward_kl",
    temperature: float = 1.0,
    weight: float | None = None,
    skew: float | None = None,
) -> Any:
    """Return the distance of the student from the teacher at each position.

    Let t and s be the softmax of the teacher's and the student's logits over the temperature τ:
    ``τ² D(t, s)``, and for total variation ``τ D(t, s)``. ``divergence`` says which D:

    - ``forward_kl``: KL(t ‖ s); the student covers all that the teacher does.
    - ``reverse_kl``: KL(s ‖ t); the student leaves out what the teacher would hardly do.
    - ``js``: `js_divergence` of t and s; ``weight`` (0.5) is the teacher's share.
    - ``skewed_forward_kl``: KL(t ‖ λ t + (1 − λ) s) with ``skew`` λ (0.1).
    - ``skewed_reverse_kl``: KL(s ‖ λ s + (1 − λ) t) with ``skew`` λ (0.1).
    - ``total_variation``: ½ Σ |t − s|.

    The factor keeps the size of loss and gradient from falling as τ grows: at high τ the
    divergences fall as 1/τ² (KL to ½ Var(z_s − z_t)/τ², the variance over the vocabulary), and
    total variation as 1/τ.

    Both logits (…, V), of one shape; the temperature is τ > 0, without a unit. Returns (…), at
    least 0 and 0 for equal logits; in nats at τ = 1 (total variation: without a unit). The
    gradient flows to the student alone.

    Valid when both models share one vocabulary, in one order. −∞ is allowed for tokens that can't
    occur; forward KL is infinite where the student excludes one that the teacher does not,
    reverse KL the other way round. A row of nothing but −∞ raises.

    >>> student, teacher = [[0.0, 0.0]], [[0.0, 2.0]]
    >>> [round(float(distillation_loss(student, teacher, temperature=t)[0]), 6) for t in (1, 4)]
    [0.327813, 0.484798]

    Source: Hinton, Vinyals and Dean 2015, arXiv 1503.02531, section 2; ``js``: Agarwal et al. 2023
    (GKD), arXiv 2306.13649; skewed: Ko et al. 2024 (DistiLLM), arXiv 2402.03898. TRL's GKD has no
    factor τ², and its β is ``js`` with that weight, but forward KL at 0 and reverse KL at 1.
    """
    options = _options(divergence, weight=weight, skew=skew)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature!r}; expected a number above 0, such as 2.0")
    xp, student, teacher = numeric(student_logits, teacher_logits)
    check_outcomes(student_logits=student, teacher_logits=teacher)
    check_possible(xp, student_logits=student, teacher_logits=teacher)
    student, teacher = student / temperature, constant(teacher) / temperature
    if divergence == "forward_kl":
        return plain(temperature**2 * kl_from_logits(teacher, student))
    if divergence == "reverse_kl":
        return plain(temperature**2 * kl_from_logits(student, teacher))
    s, t = _log_softmax(xp, student), _log_softmax(xp, teacher)
    if divergence == "js":
        return plain(temperature**2 * js_divergence(t, s, log=True, **options))
    if divergence == "skewed_forward_kl":
        return plain(temperature**2 * skewed_kl(t, s, log=True, **options))
    if divergence == "skewed_reverse_kl":
        return plain(temperature**2 * skewed_kl(s, t, log=True, **options))
    return plain(temperature * total_variation(t, s, log=True))


def _options(divergence: str, **given: float | None) -> dict[str, float]:
    """Return the options of a divergence, defaults filled in; refuse what has no meaning."""
    if divergence not in get_args(Divergence):
        raise ValueError(
            f"divergence is {divergence!r}; expected one of {', '.join(get_args(Divergence))}"
        )
    skewed = {"skew": _SKEW}
    meant = {"js": {"weight": _WEIGHT}, "skewed_forward_kl": skewed, "skewed_reverse_kl": skewed}
    options = dict(meant.get(divergence, {}))
    for name, value in given.items():
        if value is None:
            continue
        if name not in options:
            homes = " or ".join(key for key, names in meant.items() if name in names)
            raise ValueError(
                f"{name} has no meaning for {divergence}; leave it out, or choose {homes}"
            )
        options[name] = value
    return options


def _log_softmax(xp: Any, z: Any) -> Any:
    # Subtracting the maximum is exact in value (it cancels) and keeps exp from overflowing.
    shifted = z - xp.max(z, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))
