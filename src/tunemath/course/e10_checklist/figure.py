"""Six fine-tunes, four checks, one verdict each."""

from __future__ import annotations

from typing import Any

from tunemath.course.style import BAD, GOOD, INK, MUTED, PAPER, SECOND, panels

_GOOD = {
    "kinds": ["prompt", "answer", "end", "padding"],
    "mask": [0, 1, 1, 0],
    "trainable": 2_442_240,
    "planned": 2_442_240,
    "items": {"base": ["a", "b"], "prompted": ["a", "b"], "tuned": ["a", "b"]},
    "retention": [0.83, 0.82],
    "allowed_drop": 0.03,
}
_RUNS: dict[str, dict[str, Any]] = {
    "a sound run": {},
    "never learns to stop": {"mask": [0, 1, 0, 0]},
    "half of the layers missed": {"trainable": 1_221_120},
    "no prompted base": {"items": {"base": ["a"], "tuned": ["a"]}},
    "forgot the rest": {"retention": [0.83, 0.55]},
    "retention never measured": {"retention": None},
}
_COLOURS = {"PASS": GOOD, "FAIL": BAD, "NOT_RUN": MUTED, "INSUFFICIENT_EVIDENCE": SECOND}


def figure(answer: dict[str, Any]) -> Any:
    """Draw with `checklist` and `verdict`."""
    chart, axes = panels("What four checks say of six fine-tunes")
    names = ["mask", "count", "baselines", "retention"]
    for row, (label, change) in enumerate(_RUNS.items()):
        found = answer["checklist"]({**_GOOD, **change})
        for column, name in enumerate(names):
            _tile(axes, column, row, found[name], 0.94)
        _tile(axes, 4.4, row, answer["verdict"](found), 1.9)
        axes.text(-0.12, row, label, ha="right", va="center", color=INK, fontsize=9.5)
    for column, name in [*enumerate(names), (4.88, "verdict")]:
        axes.text(column + 0.47, -0.75, name, ha="center", color=MUTED, fontsize=9.5)
    axes.set(xlim=(-2.3, 6.5), ylim=(len(_RUNS) - 0.4, -1.2), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    return chart


def _tile(axes: Any, x: float, y: float, status: str, width: float) -> None:
    """Draw a status as a coloured tile with its name."""
    colour = _COLOURS.get(status, MUTED)
    axes.fill([x, x + width, x + width, x], [y - 0.4, y - 0.4, y + 0.4, y + 0.4], color=colour,
              alpha=1.0 if status != "NOT_RUN" else 0.35, linewidth=0)  # fmt: skip
    text = status.replace("_", " ").lower()
    axes.text(x + width / 2, y, text, ha="center", va="center", color=PAPER, fontsize=8.5)
