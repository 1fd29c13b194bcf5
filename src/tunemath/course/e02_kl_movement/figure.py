"""KL has a direction, and adds up over tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from tunemath.course.style import ACCENT, INK, LINE, SECOND, note, panels

_BASE, _TUNED = np.array([0.6, 0.3, 0.1]), np.array([0.4, 0.4, 0.2])


def figure(answer: dict[str, Any]) -> Any:
    """Draw with `kl`."""
    kl = answer["kl"]
    chart, left, right = panels("A base that says A in one of five", "", widths=(1.15, 1))
    base = np.array([0.2, 0.8])
    shares = np.linspace(0.001, 0.999, 400)
    rows = np.stack([shares, 1 - shares], axis=1)
    left.plot(shares, [kl(row, base) for row in rows], color=ACCENT)
    left.plot(shares, [kl(base, row) for row in rows], color=SECOND)
    left.axvline(0.2, color=LINE, linewidth=1)
    note(left, "nothing moved", (0.2, 1.9), INK, xytext=(5, 0))
    note(left, "KL(tuned ‖ base): what a model moved\nby what it says", (0.55, 0.28), ACCENT,
         xytext=(-150, 26))  # fmt: skip
    note(left, "KL(base ‖ tuned): grows without end\nwhere the tuned model forgets", (0.9, 1.3),
         SECOND, xytext=(-172, 30))  # fmt: skip
    left.set(xlabel="how often the tuned model says A", ylabel="nats", ylim=(0, 2.0), xlim=(0, 1))

    places = np.arange(3)
    right.bar(places - 0.28, _BASE, 0.26, color=LINE, label="base")
    right.bar(places, _TUNED, 0.26, color=ACCENT, label="tuned")
    terms = _TUNED * np.log(_TUNED / _BASE)
    right.bar(places + 0.28, terms, 0.26, color=SECOND, label="its term, nats")
    right.axhline(0, color=INK, linewidth=0.8)
    for place, term in zip(places, terms, strict=True):
        above = (place + 0.28, max(term, 0.0))
        note(right, f"{term:+.2f}", above, SECOND, xytext=(0, 3), ha="center", fontsize=8.5)
    right.set_xticks(places, ["A", "B", "C"])
    right.set_title(f"What each token adds: {kl(_TUNED, _BASE):.4f} nats in all")
    right.legend()
    return chart
