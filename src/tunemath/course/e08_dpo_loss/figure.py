"""The loss and its pull against the margin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tunemath.course.style import ACCENT, GOOD, LINE, MUTED, SECOND, note, panels

_BETAS = ((0.1, MUTED), (0.2, ACCENT), (0.5, SECOND))


def figure(answer: dict[str, Any]) -> Any:
    """Draw with `dpo_loss`."""
    loss = answer["dpo_loss"]
    chart, left, right = panels("The loss against the margin", "How hard a pair pulls")
    margins = np.linspace(-20, 20, 201)
    step = margins[1] - margins[0]
    for beta, colour in _BETAS:
        values = np.array([float(loss(m, 0.0, 0.0, 0.0, beta)) for m in margins])
        left.plot(margins, values, color=colour, label=f"β = {beta}")
        right.plot(margins, -np.gradient(values, step), color=colour, label=f"β = {beta}")
    left.plot(0, math.log(2), "o", color=GOOD, markersize=5)
    note(left, "every run starts here: ln 2", (0, math.log(2)), GOOD, xytext=(8, 10))
    published = float(loss(-4.0, -6.0, -5.0, -5.5, 0.2))
    left.plot(1.5, published, "o", color=ACCENT, markersize=4)
    left.set(xlabel="margin, nats", ylabel="loss, nats", ylim=(0, 6))
    left.legend()
    right.axvline(0, color=LINE, linewidth=1)
    note(right, "already right:\nlittle left to learn", (8, 0.32), MUTED)
    note(right, "wrong way round: pulls with β", (-19, 0.505), SECOND, xytext=(0, 6))
    right.set(xlabel="margin, nats", ylabel="−∂ loss / ∂ margin", ylim=(0, 0.58))
    return chart
