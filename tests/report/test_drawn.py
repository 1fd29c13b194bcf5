"""What figures draw is what was measured: every point, interval, bound and limit of an axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from test_rank_advice import KEPT, RANKS, RIGHT, made

from tunemath.report import curves, figures
from tunemath.report.svg import BAD


@pytest.fixture
def axes_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], dict[str, list[Axes]]]:
    """Return what a figure's painter draws, by the figure's name, instead of its SVG."""

    def painted(draw: Callable[[], Any]) -> dict[str, list[Axes]]:
        found: dict[str, list[Axes]] = {}

        def keep(name: str, title: str, alt: str, paint: Callable, *size: Any) -> str:
            drawing = Figure(layout="constrained")
            paint(drawing)
            found[name] = drawing.axes
            return ""

        for module in (figures, curves):
            monkeypatch.setattr(module, "inline_svg", keep)
        draw()
        return found

    return painted


def lines(axes: Axes, colour: str | None = None) -> list[np.ndarray]:
    """Return the points of each line, as two rows."""
    drawn = [line for line in axes.lines if colour in (None, to_hex(line.get_color()))]
    return [np.array(line.get_data(), float) for line in drawn]


def band(axes: Axes, which: int = 0) -> np.ndarray:
    """Return the lower and upper edge of a filled band, by its places."""
    points = axes.collections[which].get_paths()[0].vertices
    places = np.unique(points[:, 0])
    edges = [
        (points[points[:, 0] == x, 1].min(), points[points[:, 0] == x, 1].max()) for x in places
    ]
    return np.array(edges).T


def test_the_loss_and_its_rate_are_those_of_the_log(sft, dpo, axes_of) -> None:
    sft["training"]["log"][5]["loss"] = math.nan
    top, rate = axes_of(lambda: figures.loss_figure(sft["training"]))["loss"]
    log = sft["training"]["log"]
    kept = [row for row in log if not math.isnan(row["loss"])]
    np.testing.assert_array_equal(
        lines(top)[0], [[row["step"] for row in kept], [row["loss"] for row in kept]]
    )
    assert len(kept) == len(log) - 1
    np.testing.assert_array_equal(lines(rate)[0][1], [row["learning_rate"] for row in log])
    assert [line.tolist() for line in lines(top)[1:]] == [[[20, 20], [0, 1]]]  # resumed at 20
    top, margin, right, _ = axes_of(lambda: figures.loss_figure(dpo["training"]))["loss"]
    assert lines(top)[-1][1].tolist() == [math.log(2)] * 2
    for axes, key in ((margin, "margin"), (right, "accuracy")):
        np.testing.assert_array_equal(lines(axes)[0][1], [r[key] for r in dpo["training"]["log"]])


@pytest.mark.parametrize(("least", "bottom"), [(0.0, 0.0), (-0.25, None)])
def test_an_axis_begins_at_zero_where_nothing_lies_below(sft, axes_of, least, bottom) -> None:
    sft["training"]["log"][3]["loss"] = least
    top, _ = axes_of(lambda: figures.loss_figure(sft["training"]))["loss"]
    assert top.get_ylim()[0] == bottom if bottom is not None else top.get_ylim()[0] < least


def test_energy_is_the_quantiles_over_modules(sft, axes_of) -> None:
    sft["spectrum"]["modules"][0]["energy"] = [0.5, 1.0]  # a module of rank 2 stays at its end
    (axes,) = axes_of(lambda: figures.energy_figure(sft["spectrum"]))["energy"]
    rows = [m["energy"] + [1.0] * (8 - len(m["energy"])) for m in sft["spectrum"]["modules"]]
    quantile = {q: 100 * np.quantile(rows, q, axis=0) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
    np.testing.assert_allclose(lines(axes)[0], [range(1, 9), quantile[0.5]])
    np.testing.assert_allclose(band(axes, 0), [quantile[0.05], quantile[0.95]])
    np.testing.assert_allclose(band(axes, 1), [quantile[0.25], quantile[0.75]])
    assert lines(axes)[1][1].tolist() == [90, 90]
    assert axes.get_ylim()[1] > 100


@pytest.mark.parametrize(
    ("energy", "words"),
    [
        ([0.5, 0.9, 1.0], "first direction is 50.0 %; 90.0 % is reached at rank 2 of 3"),
        ([0.5, 0.8999, 1.0], "first direction is 50.0 %; 100.0 % is reached at rank 3 of 3"),
        ([0.9, 0.95], "first direction is 90.0 %; 90.0 % is reached at rank 1 of 2"),
        ([0.5, 0.8], "first direction is 50.0 %; 80.0 % is reached at rank 2 of 2"),
    ],
)
def test_the_rank_that_holds_nine_tenths_is_said(energy, words) -> None:
    figure = figures.energy_figure({"modules": [{"energy": energy}] * 3})
    assert figure is not None
    assert f"Over 3 modules, the median share of energy in the {words}" in figure.alt


def test_squares_are_as_dark_as_their_share_of_the_largest(axes_of) -> None:
    modules = [
        {"target": target, "layer": layer, "relative_norm": norm}
        for target, layer, norm in (("q", 0, 0.02), ("q", 0, 0.04), ("k", 1, 0.06), ("k", 0, 0.0))
    ]
    (axes,) = axes_of(lambda: figures.layer_figure({"modules": modules}))["layers"]
    drawn = {
        (round(patch.get_x() + patch.get_width() / 2, 9),
         round(patch.get_y() + patch.get_height() / 2, 9)): patch.get_alpha()
        for patch in axes.patches
    }  # fmt: skip
    assert drawn == pytest.approx({(0, 0): 0.05 + 0.95 / 2, (1, 1): 1.0, (0, 1): 0.05})
    assert [label.get_text() for label in axes.get_yticklabels()] == ["q", "k"]
    assert axes.get_xlim()[0] < -0.46
    assert axes.get_xlim()[1] > 1.46
    figure = figures.layer_figure({"modules": modules})
    assert figure is not None
    assert "ranges from 0.00 % to 6.00 %; it is largest in k of layer 1." in figure.alt


def test_positions_are_drawn_with_marks_by_their_rows(sft, axes_of) -> None:
    moved = sft["movement"]
    (axes,) = axes_of(lambda: figures.position_figure(moved))["position"]
    drawn = [line for line in lines(axes) if line.size]
    for line, marks, name in zip(drawn, axes.collections, ("task", "retention"), strict=True):
        rows = moved[name]["by_position"]
        np.testing.assert_array_equal(line, [[r[k] for r in rows] for k in ("position", "kl")])
        np.testing.assert_array_equal(marks.get_offsets().T, line)
        share = np.array([row["rows"] for row in rows]) / max(row["rows"] for row in rows)
        np.testing.assert_allclose(marks.get_sizes(), 4 + 26 * share)
    largest = max(row["kl"] for name in ("task", "retention") for row in moved[name]["by_position"])
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > largest
    figure = figures.position_figure(moved)
    assert figure is not None
    assert "task: largest at position 0, " in figure.alt


def test_differences_stand_between_their_ends_beside_zero_and_margin(sft, axes_of) -> None:
    card = sft["scorecard"]
    card["differences"]["task"]["tuned - prompted"]["low"] = None
    (axes,) = axes_of(lambda: figures.difference_figure(card))["differences"]
    rows = [d for name in ("task", "retention") for d in card["differences"][name].values()]
    points = [line for line in lines(axes) if line.shape == (2, 1)]
    np.testing.assert_allclose(
        np.array(points)[:, :, 0], [[100 * d["difference"], i] for i, d in enumerate(rows)]
    )
    level = [line for line in lines(axes) if line.shape == (2, 2) and line[1, 0] == line[1, 1]]
    whole = [(i, d) for i, d in enumerate(rows) if d["low"] is not None]
    np.testing.assert_allclose(
        level, [[[100 * d["low"], 100 * d["high"]], [i, i]] for i, d in whole]
    )
    upright = [line for line in lines(axes) if line.shape == (2, 2) and line[0, 0] == line[0, 1]]
    assert [line[0, 0] for line in upright] == pytest.approx([0, 0, 0, -10, 0, -10])
    assert all(abs(line[1].mean() - round(line[1].mean())) < 0.1 for line in upright)
    assert [line[0, 0] for line in lines(axes, BAD)] == pytest.approx([-10, -10])
    bottom, top = axes.get_ylim()
    assert top < -0.44  # the first line of words is inside
    assert bottom > 3.26


def test_scores_lie_on_an_axis_that_shows_both_ends(sft, axes_of) -> None:
    card = sft["scorecard"]
    card["arms"]["base"]["task"] |= {"score": 0.0, "low": 0.0, "high": 0.02}
    card["arms"]["tuned"]["task"] |= {"score": 1.0, "low": 0.98, "high": 1.0}
    (axes,) = axes_of(lambda: figures.score_figure(card))["scores"]
    rows = [card["arms"][arm][name] for name in ("task", "retention")
            for arm in ("base", "prompted", "tuned")]  # fmt: skip
    points = [line for line in lines(axes) if line.shape == (2, 1)]
    ends = [line[0] for line in lines(axes) if line.shape == (2, 2)]
    np.testing.assert_allclose([p[0, 0] for p in points], [100 * row["score"] for row in rows])
    np.testing.assert_allclose(ends, [[100 * row["low"], 100 * row["high"]] for row in rows])
    assert axes.get_xlim()[0] < 0
    assert axes.get_xlim()[1] > 100


def test_the_rank_s_curves_are_the_points(axes_of) -> None:
    rank = made()
    place = [math.log2(1 + r) for r in RANKS]
    score, share, nats = axes_of(lambda: curves.rank_figures(rank))["rank"]
    np.testing.assert_allclose(lines(score)[0], [place, RIGHT])
    np.testing.assert_allclose(
        band(score), [[r - 4 for r in RIGHT], [min(100, r + 4) for r in RIGHT]]
    )
    assert lines(score, BAD)[0][1] == pytest.approx([97 - 5] * 2)  # the whole's, less the margin
    kept, energy = lines(share)[:2]
    np.testing.assert_allclose(kept, [place, [100 * k for k in KEPT]], atol=1e-9)
    np.testing.assert_allclose(energy[1], [0, 50, 70, 90, 100])
    lost = [1 - k for k in KEPT]
    np.testing.assert_allclose(
        band(share), [[100 * (1 - 1.1 * x) for x in lost], [100 * (1 - 0.9 * x) for x in lost]],
        atol=1e-9,
    )  # fmt: skip
    assert lines(share, BAD)[0][1] == pytest.approx([95, 95])
    assert share.get_ylim()[1] > 100
    assert share.get_ylim()[0] < 0
    # What is nothing has no place on a logarithm's axis: the whole cut by nothing, the base moved.
    cut, moved = lines(nats)[:2]
    np.testing.assert_allclose(cut, [place[:-1], [2 * x for x in lost[:-1]]])
    np.testing.assert_allclose(moved, [place[1:], [2 * k for k in KEPT[1:]]])
    for axes in (score, share, nats):
        assert lines(axes)[-1][0].tolist() == [math.log2(5)] * 2  # rank 4 suffices


def test_a_block_s_bound_is_its_part_of_what_may_be_lost(axes_of) -> None:
    drawn = axes_of(lambda: curves.rank_figures(made()))["rank-blocks"]
    assert [axes.get_title(loc="left") for axes in drawn] == [
        "Attention (25 % of ‖ΔW‖²)", "Feed-forward (75 % of ‖ΔW‖²)",
    ]  # fmt: skip
    for axes, needed in zip(drawn, (1, 4), strict=True):
        assert lines(axes, BAD)[0][1] == pytest.approx([97.5] * 2)
        assert lines(axes)[-1][0].tolist() == [math.log2(1 + needed)] * 2
