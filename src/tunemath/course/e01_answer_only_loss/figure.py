"""Losses under a mask, and a batch that is cut in every way."""

from __future__ import annotations

from typing import Any

import numpy as np

from tunemath.course.style import ACCENT, BAD, GOOD, LINE, MUTED, note, panels

_TOKENS = ["Date", ":", "3", " May", "→", "1999", "-05", "-03", "‹end›", "‹pad›"]
_LOSSES = np.array([5.1, 0.9, 4.2, 3.8, 2.9, 1.4, 0.3, 0.2, 1.9, 0.0])
_MASK = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 0])


def figure(answer: dict[str, Any]) -> Any:
    """Draw with `answer_only_loss` and `batch_loss`."""
    chart, left, right = panels(
        "Only the answer is averaged", "One batch, cut in 200 ways", widths=(1.35, 1)
    )
    places = np.arange(len(_TOKENS))
    left.bar(places, _LOSSES, color=[ACCENT if m else LINE for m in _MASK], width=0.72)
    masked, every = answer["answer_only_loss"](_LOSSES, _MASK), _LOSSES.mean()
    left.hlines(masked, 4.5, 8.5, color=GOOD)
    note(left, f"answer {masked:.2f}", (6.5, masked), GOOD, xytext=(0, 6), ha="center")
    left.axhline(every, color=BAD, linestyle=(0, (4, 3)), linewidth=1.2)
    note(left, f"all tokens {every:.2f}", (6.2, every), BAD)
    left.set_xticks(places, _TOKENS)
    left.set_ylabel("loss, nats")

    rng = np.random.default_rng(0)
    losses = rng.gamma(2, 0.6, 48)
    mask = (rng.random(48) < np.linspace(0.1, 0.9, 48)).astype(int)
    losses += np.linspace(1.5, 0, 48)
    whole, means = [], []
    for _ in range(200):
        cuts = np.sort(rng.choice(np.arange(6, 43), 3, replace=False))
        parts = list(zip(np.split(losses, cuts), np.split(mask, cuts), strict=True))
        whole.append(answer["batch_loss"](parts))
        means.append(np.mean([x[m == 1].mean() for x, m in parts if m.any()]))
    right.scatter(np.arange(200), means, s=9, color=MUTED, alpha=0.55, linewidth=0)
    right.plot(np.arange(200), whole, color=GOOD)
    note(right, "mean of the pieces' means", (2, max(means)), MUTED, xytext=(0, 6))
    note(right, "one sum, one count", (2, min(means)), GOOD, xytext=(0, -14))
    right.set_xlabel("cut into four micro-batches, at random")
    right.set_ylabel("loss, nats")
    right.margins(y=0.18)
    return chart
