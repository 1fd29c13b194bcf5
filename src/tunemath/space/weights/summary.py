"""A whole model's update in one table: by weight, by layer, and where the movement is.

A group is the weights of one block, of one kind (block and target) or of one layer. Its movement is
``√(Σ ‖ΔW‖_F² / Σ ‖W‖_F²)``, and its share that of the model's Σ ‖ΔW‖_F². A weighted mean is
weighted by ‖ΔW‖_F²; a median counts every weight once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, isfinite, sqrt
from statistics import median
from typing import Any

__all__ = ["summarise"]

Row = dict[str, Any]


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the ``summary`` of ``spectrum.json`` from its rows, at least one."""
    total = sum(row["frobenius"] ** 2 for row in rows)
    blocks = dict.fromkeys(row["block"] for row in rows)
    targets = dict.fromkeys((row["block"], row["target"]) for row in rows)
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    return {
        **_group(rows, total),
        "energy": _median_energy(rows),
        "by_block": [
            {"block": block, **_group([r for r in rows if r["block"] == block], total)}
            for block in blocks
        ],
        "by_target": [
            {
                "block": block,
                "target": target,
                **_group([r for r in rows if (r["block"], r["target"]) == (block, target)], total),
            }
            for block, target in targets
        ],
        "by_layer": [
            {"layer": layer, **_group([r for r in rows if r["layer"] == layer], total)}
            for layer in layers
        ],
    }


def _group(rows: Sequence[Row], total: float) -> dict[str, Any]:
    moved = sum(row["frobenius"] ** 2 for row in rows)
    norms = [row["weight_norm"] for row in rows]
    weight = 0.0 if None in norms else sum(norm**2 for norm in norms)
    lows, highs = ([row["effective_rank_bounds"][side] for row in rows] for side in (0, 1))
    exact = all(row["exact"] for row in rows)
    return {
        "modules": len(rows),
        "exact": exact,
        "largest_slack": max(
            bound - error
            for row in rows
            for error, bound in zip(row["relative_error"], row["bound"], strict=True)
        ),
        "share": moved / total if total else 0.0,
        "overall_relative_norm": sqrt(moved / weight) if weight else None,
        "relative_norm": _median([row["relative_norm"] for row in rows]),
        "median_effective_rank": median(highs) if exact else None,
        "median_effective_rank_bounds": [median(lows), median(highs)],
        "weighted_effective_rank_bounds": [
            _weighted(rows, lambda row, side=side: row["effective_rank_bounds"][side])
            for side in (0, 1)
        ],
        "stable_rank": median(row["stable_rank"] for row in rows),
        "weighted_stable_rank": _weighted(rows, lambda row: row["stable_rank"]),
        "rank_for_90_percent": _median([row["rank_for_90_percent"] for row in rows]),
        "rank_for_99_percent": _median([row["rank_for_99_percent"] for row in rows]),
        "intruders": _intruders(rows),
        "base_overlap": _weighted_overlap(rows, "base"),
        "other_overlap": _weighted_overlap(rows, "other"),
    }


def _median(values: Sequence[float | None]) -> float | None:
    """Return the median, where None is beyond all others; None if it is beyond."""
    found = median(inf if value is None else value for value in values)
    return float(found) if isfinite(found) else None


def _weighted(rows: Sequence[Row], value: Callable[[Row], float]) -> float:
    weights = [row["frobenius"] ** 2 for row in rows]
    total = sum(weights)
    return sum(w * value(row) for w, row in zip(weights, rows, strict=True)) / (total or 1.0)


def _intruders(rows: Sequence[Row]) -> dict[str, int] | None:
    """Return how many of the first directions of these weights are intruders, between bounds."""
    found = [row["intruders"] for row in rows if "intruders" in row]
    if not found:
        return None
    return {key: sum(each[key] for each in found) for key in ("of", "lower", "upper")}


def _weighted_overlap(rows: Sequence[Row], which: str) -> dict[str, float] | None:
    """Return the overlap with the base's directions or another update's, and that of chance."""
    chosen = [row for row in rows if which in row]
    if not chosen:
        return None
    return {
        f"{side}{of}": _weighted(chosen, lambda row, side=side, key=key: row[which][side][key])
        for side in ("left", "right")
        for of, key in (("", "overlap"), ("_chance", "chance"))
    }


def _median_energy(rows: Sequence[Row]) -> list[float]:
    """Return the median share of energy at each rank; what has fewer values stays at its last."""
    longest = max(len(row["energy"]) for row in rows)
    filled = [
        [*row["energy"], *row["energy"][-1:] * (longest - len(row["energy"]))] for row in rows
    ]
    return [median(column) for column in zip(*filled, strict=True)]
