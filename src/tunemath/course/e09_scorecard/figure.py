"""Which of two fine-tunes is better depends on the weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from tunemath.course.style import ACCENT, GOOD, LINE, MUTED, SECOND, note, panels

_BOLD, _CAREFUL = (0.84, 0.62), (0.74, 0.80)
_SPREAD = 0.03


def figure(answer: dict[str, Any]) -> Any:
    """Draw with `score` and `turning_weight`."""
    chart, left, right = panels("Two fine-tunes", "Their scores, by what the task weighs")
    for (quality, retention), colour, name in (
        (_BOLD, ACCENT, "bold"),
        (_CAREFUL, SECOND, "careful"),
    ):
        left.errorbar(quality, retention, _SPREAD, _SPREAD, color=colour, fmt="o", capsize=3)
        note(left, name, (quality, retention), colour, xytext=(8, 8))
    left.plot(0.1, 0.84, "o", color=MUTED)
    note(left, "the base", (0.1, 0.84), MUTED, xytext=(8, -4))
    left.axhline(0.7, color=LINE, linestyle=(0, (4, 3)))
    note(left, "a floor for retention", (0.02, 0.7), MUTED, xytext=(0, 4))
    left.set(xlabel="task quality", ylabel="retention", xlim=(0, 1), ylim=(0.5, 0.9))

    weights = np.linspace(0, 1, 101)
    for point, colour, name in ((_BOLD, ACCENT, "bold"), (_CAREFUL, SECOND, "careful")):
        scores = np.array([answer["score"](*point, float(w)) for w in weights])
        right.plot(weights, scores, color=colour)
        width = _SPREAD * np.hypot(weights, 1 - weights)
        right.fill_between(weights, scores - width, scores + width, color=colour, alpha=0.12,
                           linewidth=0)  # fmt: skip
        note(right, name, (1, scores[-1]), colour, xytext=(-4, 8), ha="right")
    turn = answer["turning_weight"](_BOLD, _CAREFUL)
    at = answer["score"](*_BOLD, turn)
    right.plot(turn, at, "o", color=GOOD, markersize=5)
    note(right, f"the winner changes\nat {turn:.2f}", (turn, at), GOOD, xytext=(-30, -34))
    right.set(xlabel="weight of the task", ylabel="score", xlim=(0, 1))
    return chart
