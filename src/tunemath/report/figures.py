"""The figures of a report: small enough for a phone, drawn for light, dark and print.

Each function takes one product of a run and returns a `Figure`, or None where the product has
nothing to draw. `figures` returns all that the evidence allows. matplotlib is imported when
the first one is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunemath.report.intervals import difference_drawing, score_drawing
from tunemath.report.svg import ACCENT, INK, MUTED, SECOND, inline_svg
from tunemath.report.text import clean, count, decimal, dig, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = [
    "Figure",
    "difference_figure",
    "energy_figure",
    "figures",
    "layer_figure",
    "loss_figure",
    "position_figure",
    "score_figure",
]

Curve = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Figure:
    """An inline SVG with the words that belong to it."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str


def figures(evidence: Mapping[str, Any]) -> dict[str, Figure]:
    """Return every figure that the evidence allows, by name; none without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return {}
    found: Iterable[Figure | None] = (
        loss_figure(evidence.get("training")),
        energy_figure(evidence.get("spectrum")),
        layer_figure(evidence.get("spectrum")),
        position_figure(evidence.get("movement")),
        difference_figure(evidence.get("scorecard")),
        score_figure(evidence.get("scorecard")),
    )
    return {figure.name: figure for figure in found if figure is not None}


def loss_figure(training: Mapping[str, Any] | None) -> Figure | None:
    """Draw the loss by step with the learning rate; for DPO the margin and accuracy as well."""
    log = dig(training, "log") or []
    loss = _curve(log, "loss")
    if training is None or not len(loss[0]):
        return None
    dpo = training.get("objective") == "dpo"
    unit = "nats per pair" if dpo else "nats per answer token"
    panels: list[tuple[str, str, str]] = [("loss", f"Loss, {unit}", ACCENT)]
    if dpo:
        panels.append(("margin", "Margin, nats", SECOND))
        panels.append(("accuracy", "Pairs ranked rightly, share", SECOND))
    panels.append(("learning_rate", "Learning rate", MUTED))
    resumed = [step for step in training.get("resumed_at") or [] if number(step) is not None]

    def paint(drawing: Drawing) -> None:
        ratios = [2.6, *[1.3] * (len(panels) - 2), 1]
        grid = drawing.subplots(len(panels), 1, sharex=True, height_ratios=ratios, squeeze=False)
        for axes, (key, label, colour) in zip(grid[:, 0], panels, strict=True):
            _panel(axes, _curve(log, key), label, colour, resumed)
        if dpo:
            grid[0, 0].axhline(math.log(2), color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        grid[-1, 0].set_xlabel("Optimizer step")

    first, last = loss[1][0], loss[1][-1]
    alt = f"The loss goes from {decimal(first)} to {decimal(last)} {unit} in {len(loss[0])} steps."
    caption = "Training loss at every step, and the learning rate."
    if dpo:
        caption = "Training loss (dashed: ln 2), margin, accuracy and learning rate by step."
    if resumed:
        caption += " Dotted: where the run was resumed."
    size = (4.7, 4.7 if dpo else 3.3)
    svg = inline_svg("loss", "Loss by step", alt, paint, size)
    return Figure("loss", "Loss by step", caption, alt, svg)


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> Curve:
    """Return the steps at which a value was logged and is finite, and the values."""
    pairs = [(row.get("step"), number(row.get(key))) for row in rows]
    kept = [(step, value) for step, value in pairs if step is not None and value is not None]
    return np.array([s for s, _ in kept], float), np.array([v for _, v in kept], float)


def _panel(axes: Axes, curve: Curve, label: str, colour: str, resumed: Sequence[int]) -> None:
    axes.plot(*curve, color=colour, marker="o" if len(curve[0]) < 3 else None, markersize=3)
    axes.set_title(label, loc="left", fontsize=9, color=INK, pad=3)
    axes.margins(x=0.01)
    axes.locator_params(axis="y", nbins=4 if label.startswith("Loss") else 2)
    if len(curve[0]) and curve[1].min() >= 0:
        axes.set_ylim(bottom=0)
    for step in resumed:
        axes.axvline(step, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))


def energy_figure(spectrum: Mapping[str, Any] | None) -> Figure | None:
    """Draw the median share of ‖ΔW‖² in the first k directions, with its spread over modules."""
    rows = [m["energy"] for m in dig(spectrum, "modules") or [] if m.get("energy")]
    if not rows:
        return None
    width = max(len(row) for row in rows)
    filled = [[*row, *[row[-1]] * (width - len(row))] for row in rows]
    energy = np.array(filled, float)
    low, lower, median, upper, high = np.quantile(energy, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    ranks = np.arange(1, width + 1)

    def paint(drawing: Drawing) -> None:
        axes = drawing.subplots()
        axes.fill_between(ranks, 100 * low, 100 * high, color=ACCENT, alpha=0.12, linewidth=0)
        axes.fill_between(ranks, 100 * lower, 100 * upper, color=ACCENT, alpha=0.22, linewidth=0)
        axes.plot(ranks, 100 * median, color=ACCENT, marker="o", markersize=4)
        axes.axhline(90, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.text(width, 88.5, "90 %", ha="right", va="top", color=MUTED, fontsize=9)
        axes.set(xlabel="Rank k", ylim=(0, 103))
        axes.set_title("Energy in the first k directions, %", loc="left", fontsize=9, color=INK)
        axes.set_xticks(_some(ranks, 9))

    reached = int(np.argmax(median >= 0.9)) + 1 if (median >= 0.9).any() else width
    alt = (
        f"Over {count(len(rows))} modules, the median share of energy in the first direction is "
        f"{percent(median[0])}; {percent(median[reached - 1])} is reached at rank {reached} "
        f"of {width}."
    )
    caption = (
        f"Share of ‖ΔW‖² in the first k singular directions: median of {count(len(rows))} modules, "
        "with the middle 50 % and 90 % of them."
    )
    title = "Energy by rank"
    return Figure("energy", title, caption, alt, inline_svg("energy", title, alt, paint))


def _some(values: np.ndarray, most: int) -> np.ndarray:
    """Return at most so many of the values, evenly spaced, the first among them."""
    return values[:: max(1, math.ceil(len(values) / most))]


def layer_figure(spectrum: Mapping[str, Any] | None, value: str = "relative_norm") -> Figure | None:
    """Draw ``relative_norm`` (‖ΔW‖/‖W‖) or ``effective_rank`` by layer and target."""
    cells: dict[tuple[str, int], list[float]] = {}
    for module in dig(spectrum, "modules") or []:
        measured, layer = number(module.get(value)), number(module.get("layer"))
        if measured is not None and layer is not None:
            key = (clean(module.get("target")), int(layer))
            cells.setdefault(key, []).append(measured)
    if not cells:
        return None
    means = {key: sum(values) / len(values) for key, values in cells.items()}
    targets = list(dict.fromkeys(target for target, _ in means))
    top = max(means.values())
    scale, unit = (100, " %") if value == "relative_norm" else (1, "")
    what = "‖ΔW‖ / ‖W‖" if value == "relative_norm" else "Effective rank"

    def paint(drawing: Drawing) -> None:
        _heat_map(drawing.subplots(), means, targets, top)

    best, layer = max(means, key=lambda key: means[key])
    least = min(means.values())
    strongest = f"{decimal(scale * top, 2)}{unit}"
    span = f"{decimal(scale * least, 2)}{unit} to {strongest}"
    alt = f"{what} ranges from {span}; it is largest in {best} of layer {layer}."
    caption = f"{what} by layer and target. The strongest square is {strongest}."
    title = f"{what} by layer and target"
    name = "layers" if value == "relative_norm" else "layers-" + value.replace("_", "-")
    height = max(1.6, 0.75 + 0.22 * len(targets))
    svg = inline_svg(name, title, alt, paint, (4.7, height))
    return Figure(name, title, caption, alt, svg)


def _heat_map(
    axes: Axes, means: Mapping[tuple[str, int], float], targets: list[str], top: float
) -> None:
    from matplotlib.patches import Rectangle

    for (target, layer), mean in means.items():
        share = mean / top if top > 0 else 0.0
        corner = (layer - 0.46, targets.index(target) - 0.44)
        axes.add_patch(
            Rectangle(corner, 0.92, 0.88, color=ACCENT, alpha=0.05 + 0.95 * share, linewidth=0)
        )
    layers = np.array(sorted({layer for _, layer in means}))
    axes.set_xlim(layers[0] - 0.6, layers[-1] + 0.6)
    axes.set_ylim(len(targets) - 0.45, -0.55)
    axes.set_yticks(range(len(targets)), targets)
    axes.set_xticks(_some(layers, 8))
    axes.set_xlabel("Layer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def position_figure(movement: Mapping[str, Any] | None) -> Figure | None:
    """Draw KL(tuned ‖ base) by position in the answer, for task and retention items."""
    lines = {}
    for name in ("task", "retention"):
        rows = dig(movement, name, "by_position") or []
        kept = [(r["position"], number(r.get("kl")), number(r.get("rows")) or 0.0) for r in rows]
        kept = [(p, kl, n) for p, kl, n in kept if kl is not None]
        if kept:
            lines[name] = np.array(kept, float).T
    if not lines:
        return None
    looks = {"task": (ACCENT, "-", "o"), "retention": (SECOND, "--", "s")}

    def paint(drawing: Drawing) -> None:
        axes = drawing.subplots()
        for name, (position, kl, rows) in lines.items():
            colour, dash, marker = looks[name]
            axes.plot(position, kl, color=colour, linestyle=dash, linewidth=1.3)
            axes.plot([], [], color=colour, linestyle=dash, marker=marker, label=name)
            area = 4 + 26 * rows / max(rows.max(), 1.0)
            axes.scatter(position, kl, s=area, color=colour, marker=marker, linewidth=0)
        axes.set_xlabel("Position in the answer (0 is the first token)")
        axes.set_title("KL(tuned ‖ base), nats", loc="left", fontsize=9, color=INK)
        axes.locator_params(axis="x", integer=True)
        axes.set_ylim(0, 1.1 * max(kl.max() for _, kl, _ in lines.values()) or 1.0)
        axes.legend()

    parts = []
    for name, (position, kl, _) in lines.items():
        at = int(np.argmax(kl))
        parts.append(f"{name}: largest at position {position[at]:.0f}, {decimal(kl[at])} nats")
    alt = "KL(tuned ‖ base) by answer position. " + "; ".join(parts) + "."
    caption = "How far each answer token's distribution moved. Marks shrink as fewer rows reach it."
    title = "KL by answer position"
    return Figure("position", title, caption, alt, inline_svg("position", title, alt, paint))


def difference_figure(scorecard: Mapping[str, Any] | None) -> Figure | None:
    """Draw the paired differences with their 95 % intervals, zero and the retention margin."""
    drawn = difference_drawing(scorecard)
    if drawn is None:
        return None
    alt, paint, height = drawn
    title = "Score differences"
    caption = "Paired differences on the same items with 95 % intervals."
    if dig(scorecard, "retention_margin") is not None and dig(
        scorecard, "differences", "retention"
    ):
        caption += " Dashed: the retention margin."
    svg = inline_svg("differences", title, alt, paint, (4.7, height))
    return Figure("differences", title, caption, alt, svg)


def score_figure(scorecard: Mapping[str, Any] | None) -> Figure | None:
    """Draw the score of each arm with its 95 % interval."""
    drawn = score_drawing(scorecard)
    if drawn is None:
        return None
    alt, paint, height = drawn
    title = "Scores by arm"
    caption = "Score of each arm with its 95 % interval."
    svg = inline_svg("scores", title, alt, paint, (4.7, height))
    return Figure("scores", title, caption, alt, svg)
