"""What the scores decide, as a rule and as sentences that a reviewer can act on.

::

    gain       PASS   tuned beats the base, exact McNemar p < 0.05, and is not below the prompt
               FAIL   the interval of tuned − base lies below 0, or p < 0.05 below the prompt
    retention  FAIL   the interval of tuned − base lies wholly below −margin
               INSUFFICIENT_EVIDENCE when it contains −margin, PASS when it lies above
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunemath.findings import Status

__all__ = ["ALPHA", "judge_gain", "judge_retention", "plain_verdict"]

ALPHA = 0.05
_BASE, _PROMPTED = "tuned - base", "tuned - prompted"


def judge_gain(differences: Mapping[str, Mapping[str, float]]) -> Status:
    """Return whether the tuned model is better at the task than the base and than prompting.

    >>> none = {"difference": 0.1, "low": -0.02, "high": 0.2, "p": 0.2}
    >>> judge_gain({"tuned - base": none, "tuned - prompted": none}).value
    'INSUFFICIENT_EVIDENCE'
    """
    base, prompted = differences[_BASE], differences[_PROMPTED]
    below_prompt = prompted["p"] < ALPHA and prompted["difference"] < 0
    if base["high"] < 0 or below_prompt:
        return Status.FAIL
    if base["p"] < ALPHA and base["difference"] > 0 and prompted["difference"] >= 0:
        return Status.PASS
    return Status.INSUFFICIENT_EVIDENCE


def judge_retention(difference: Mapping[str, float], margin: float) -> Status:
    """Return whether retention was kept to within ``margin``, by the interval of tuned − base.

    >>> judge_retention({"low": -0.13, "high": -0.01}, margin=0.10).value
    'INSUFFICIENT_EVIDENCE'
    """
    if difference["high"] < -margin:
        return Status.FAIL
    return Status.PASS if difference["low"] > -margin else Status.INSUFFICIENT_EVIDENCE


def plain_verdict(card: Mapping[str, Any]) -> str:
    """Return the scorecard in two to four sentences: task, retention, movement, what to do."""
    task = card["differences"]["task"]
    if not task:
        return "No task items were scored, so there is nothing to decide; evaluate the task first."
    gain = judge_gain(task)
    lost = card["differences"]["retention"]
    kept = judge_retention(lost[_BASE], card["retention_margin"]) if lost else Status.NOT_RUN
    sentences = [_task(card["arms"]["tuned"]["task"], task), _retention(card, kept)]
    movement = _movement(card["movement"])
    return " ".join(filter(None, [*sentences, movement, _advice(gain, kept)]))


def _task(tuned: Mapping[str, float], task: Mapping[str, Mapping[str, float]]) -> str:
    return (
        f"The tuned model answers {tuned['correct']} of {tuned['items']} task items correctly "
        f"({100 * tuned['score']:.1f} %): {_compared(task[_BASE], 'the base')} and "
        f"{_compared(task[_PROMPTED], 'the base with examples in its prompt')}."
    )


def _compared(difference: Mapping[str, float], other: str) -> str:
    """Say a difference in points, with its interval and p-value."""
    points = 100 * difference["difference"]
    numbers = f"95 % interval {_span(difference)}, exact McNemar {p_value(difference['p'])}"
    if not points:
        return f"level with {other} ({numbers})"
    side = "above" if points > 0 else "below"
    return f"{abs(points):.1f} points {side} {other} ({numbers})"


def _retention(card: Mapping[str, Any], kept: Status) -> str:
    if kept is Status.NOT_RUN:
        return "Retention was not measured, so what was forgotten is unknown."
    difference, margin = card["differences"]["retention"][_BASE], 100 * card["retention_margin"]
    said = {
        Status.PASS: f"kept to within the margin of {margin:g} points",
        Status.FAIL: f"lost by more than the margin of {margin:g} points",
        Status.INSUFFICIENT_EVIDENCE: (
            f"undecided against the margin of {margin:g} points, which the interval contains"
        ),
    }[kept]
    return (
        f"Retention moved by {100 * difference['difference']:+.1f} points from the base "
        f"(95 % interval {_span(difference)}): {said}."
    )


def _movement(movement: Mapping[str, Any] | None) -> str:
    if not movement:
        return ""
    parts = [f"{movement[name]['kl']:.3g} on {name} items" for name in movement if movement[name]]
    return "KL(tuned ‖ base) per answer token is " + " and ".join(parts) + " (nats)."


def _advice(gain: Status, kept: Status) -> str:
    """Say what the scores ask for."""
    if gain is Status.FAIL or kept is Status.FAIL:
        return "On these scores, do not use the tuned model."
    if gain is Status.INSUFFICIENT_EVIDENCE:
        return "On these scores, the gain is not shown: evaluate more items or train further."
    if kept is Status.INSUFFICIENT_EVIDENCE:
        return "On these scores, evaluate more retention items before using the tuned model."
    if kept is Status.NOT_RUN:
        return "On these scores, measure retention before using the tuned model."
    return "On these scores, use the tuned model."


def _span(difference: Mapping[str, float]) -> str:
    return f"{100 * difference['low']:+.1f} to {100 * difference['high']:+.1f}"


def p_value(p: float) -> str:
    """Say a p-value: three digits, or a bound when it is very small."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.3g}"
