"""The figures of an update's rank: what each rank holds of the energy, and keeps of the function.

Ranks stand at log2(1 + rank), so that 0 has a place and small ranks are apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunemath.report.figures import Figure
from tunemath.report.svg import ACCENT, BAD, INK, LINE, MUTED, SECOND, inline_svg
from tunemath.report.text import clean, count, dig, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["rank_figures"]

_LEAST = 1e-6  # nats: less is rounding, and has no place on a logarithmic axis
_COLOURS = (ACCENT, SECOND)
_DASHED = (0, (3, 3))


def rank_figures(rank: Mapping[str, Any] | None) -> list[Figure]:
    """Return the curves of the whole model and of its blocks; none without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return []
    curves = dig(rank, "curves") or []
    if rank is None or not curves or curves[0].get("needed") is None:
        return []
    found = [_whole_figure(rank, curves[0])]
    if len(curves) > 1:
        found.append(_block_figure(rank, curves[1:]))
    return found


def _whole_figure(rank: Mapping[str, Any], curve: Mapping[str, Any]) -> Figure:
    points, first = curve["points"], next(iter(rank["sets"]))
    scored = points[0].get("score") is not None

    def paint(drawing: Drawing) -> None:
        ratios = [1.0, 1.15, 1.25] if scored else [1.15, 1.25]
        grid = drawing.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
        if scored:
            _score_panel(grid[0], rank, points)
        _share_panel(grid[-2], points, first, rank["share"])
        grid[-2].legend(loc="lower right", bbox_to_anchor=(0.94, 0.02))
        grid[-2].set_title("Kept of the movement, and of the energy, %", **_TITLE)
        _nats_panel(grid[-1], points, list(rank["sets"]))
        for axes in grid:
            axes.axvline(_place(curve["needed"]), color=INK, linewidth=0.8, linestyle=_DASHED)
        _rank_axis(grid[-1], points)

    needed = next(row for row in points if row["rank"] == curve["needed"])
    lost = needed["sets"][first]["lost"]["estimate"]
    alt = (
        f"Of {count(len(points))} ranks up to {count(points[-1]['rank'])}, rank "
        f"{count(curve['needed'])} is the smallest that suffices: it holds "
        f"{percent(needed['energy'])} of the energy and keeps {percent(1 - lost)} of the movement"
    )
    if scored:
        alt += f"; its score is {percent(needed['score']['score'])}"
    caption = (
        "The update cut at each rank, in every matrix. Kept of the movement is "
        "1 − KL(tuned ‖ cut) / KL(tuned ‖ base), with 95 % intervals over items. Dashed across: "
        "the rank that suffices."
    )
    if scored:
        caption += " Dotted: what may be lost of the score and of the movement."
    title, size = "Which rank was needed", (4.7, 5.6 if scored else 4.1)
    return Figure("rank", title, caption, alt + ".", inline_svg("rank", title, alt, paint, size))


_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 9, "color": INK, "pad": 3}


def _score_panel(axes: Axes, rank: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> None:
    place = [_place(row["rank"]) for row in points]
    scores = [row["score"] for row in points]
    value, low, high = (np.array([100 * s[k] for s in scores]) for k in ("score", "low", "high"))
    axes.fill_between(place, low, high, color=ACCENT, alpha=0.15, linewidth=0)
    axes.plot(place, value, color=ACCENT, marker="o", markersize=4)
    floor = value[-1] - 100 * rank["margin"]
    axes.plot([place[0], place[-1]], [floor] * 2, color=BAD, linewidth=1, linestyle=(0, (1, 2)))
    axes.set_title(f"Score on {count(scores[0]['items'])} items, %", **_TITLE)
    axes.set_ylim(0, 103)
    axes.locator_params(axis="y", nbins=4)


def _share_panel(axes: Axes, points: Sequence[Mapping[str, Any]], first: str, share: float) -> None:
    place = [_place(row["rank"]) for row in points]
    lost = [row["sets"][first]["lost"] for row in points]
    kept, low, high = (
        np.array([100 * (1 - each[k]) for each in lost]) for k in ("estimate", "high", "low")
    )
    energy = [100 * row["energy"] for row in points]
    axes.fill_between(place, low, high, color=ACCENT, alpha=0.2, linewidth=0)
    axes.plot(place, kept, color=ACCENT, marker="o", markersize=4, label="movement")
    axes.plot(place, energy, color=MUTED, marker="s", markersize=3, linewidth=1.2,
              linestyle=_DASHED, label="energy")  # fmt: skip
    bound = [100 * (1 - share)] * 2
    axes.plot([place[0], place[-1]], bound, color=BAD, linewidth=1, linestyle=(0, (1, 2)))
    axes.set_ylim(max(-60.0, min(0.0, float(kept.min()))) - 3, 104)
    axes.locator_params(axis="y", nbins=5)


def _nats_panel(axes: Axes, points: Sequence[Mapping[str, Any]], sets: Sequence[str]) -> None:
    for name, colour in zip(sets, _COLOURS, strict=False):
        for key, dash, marker, label in (
            ("kl_tuned_cut", "-", "o", f"KL(tuned ‖ cut), {clean(name)}"),
            ("kl_cut_base", _DASHED, None, f"KL(cut ‖ base), {clean(name)}"),
        ):
            rows = [(row["rank"], row["sets"][name][key]) for row in points]
            rows = [(r, kl) for r, kl in rows if (number(kl["kl"]) or 0) > _LEAST]
            if not rows:
                continue
            place = [_place(r) for r, _ in rows]
            axes.plot(place, [kl["kl"] for _, kl in rows], color=colour, linestyle=dash,
                      marker=marker, markersize=4, linewidth=1.3, label=label)  # fmt: skip
            low, high = ([max(kl[end], _LEAST) for _, kl in rows] for end in ("low", "high"))
            axes.fill_between(place, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title("Nats per answer token", **_TITLE)
    axes.tick_params(axis="y", which="minor", length=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.42), ncols=2, handlelength=2.2)


def _block_figure(rank: Mapping[str, Any], curves: Sequence[Mapping[str, Any]]) -> Figure:
    first = next(iter(rank["sets"]))
    share = rank["share"] / len(curves)

    def paint(drawing: Drawing) -> None:
        columns = min(2, len(curves))
        lines = -(-len(curves) // columns)
        grid = drawing.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        for axes in grid[len(curves) :]:
            axes.set_axis_off()
        for axes, curve in zip(grid, curves, strict=False):
            _share_panel(axes, curve["points"], first, share)
            held = rank["update"]["blocks"][curve["block"]]["energy"]
            name = clean(curve["block"])
            axes.set_title(f"{name[0].upper()}{name[1:]} ({percent(held, 0)} of ‖ΔW‖²)", **_TITLE)
            axes.axvline(_place(curve["needed"]), color=INK, linewidth=0.8, linestyle=_DASHED)
            _rank_axis(axes, curve["points"], 8)
        words = grid[0].get_legend_handles_labels()
        drawing.legend(*words, loc="outside lower center", ncols=2)

    parts = [f"{clean(curve['block'])} needs rank {count(curve['needed'])}" for curve in curves]
    alt = "Each block cut alone: " + ", ".join(parts)
    caption = (
        "The blocks of one type cut at each rank while all others stay whole: what is kept of the "
        "model's movement, and of the block's energy, in percent. Rank 0 leaves the block as it "
        "was in the base. Dotted: what a block alone may lose."
    )
    title, lines = "Which block needed it", -(-len(curves) // 2)
    svg = inline_svg("rank-blocks", title, alt, paint, (4.7, 2.2 * lines + 0.2))
    return Figure("rank-blocks", title, caption, alt + ".", svg)


def _place(rank: int) -> float:
    return float(np.log2(1 + rank))


def _rank_axis(axes: Axes, points: Sequence[Mapping[str, Any]], most: int = 14) -> None:
    """Write the ranks under an axis, those left out that would stand too close."""
    ranks = [row["rank"] for row in points]
    width = _place(ranks[-1]) / most
    shown = [ranks[-1]]
    for each in reversed(ranks[:-1]):
        if _place(shown[-1]) - _place(each) >= width:
            shown.append(each)
    axes.set_xticks([_place(r) for r in shown], [str(r) for r in shown])
    axes.set_xlabel("Rank")
    axes.margins(x=0.03)
    axes.tick_params(axis="x", color=LINE)
