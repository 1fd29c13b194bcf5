"""Which rank an update needed: its curves over rank, of the whole model and of each block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunemath.errors import ContractError
from tunemath.evaluation import (
    STILL,
    Difference,
    Interval,
    bootstrap_ratio,
    judge_rank,
    lost_movement,
    needed_rank,
    paired_difference,
    wilson_interval,
)
from tunemath.findings import Status
from tunemath.pipeline.points import BASE, WHOLE, Point, Points, Subject, update_hash
from tunemath.report.text import count, duration

__all__ = ["RankOptions", "measure_ranks"]

_DOUBLED, _QUADRUPLED = (1, 2, 4, 8), (1, 4, 16, 64)
_SMALL = 16  # up to this rank of the whole update the doubled ones are measured


@dataclass(frozen=True)
class RankOptions:
    """What is measured, and what a rank has to keep."""

    ranks: tuple[int, ...] | None = None
    """Ranks beside 0 and the whole; None for 1, 2, 4, 8, or 1, 4, 16, 64."""
    full: bool = False
    """Whether blocks are scored at every rank, and not only at the one that is needed."""
    kl_only: bool = False
    """Whether nothing is answered and scored."""
    margin: float = 0.05
    """How much of the score may be lost (0.05 is five points)."""
    share: float = 0.05
    """How much of KL(tuned ‖ base) may be lost."""
    bootstraps: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("margin", "share"):
            if not 0 < getattr(self, name) < 1:
                raise ContractError(
                    f"--{name} is {getattr(self, name):g}; give a share between 0 and 1, as 0.05"
                )
        if self.ranks is not None and (not self.ranks or min(self.ranks) < 1):
            raise ContractError("--ranks are whole numbers of 1 or more, as in 1,2,4,8")

    @property
    def most(self) -> int:
        """The largest rank at which a cut may be asked for."""
        return max(self.ranks or _QUADRUPLED)

    def chosen(self, whole: int) -> list[int]:
        """Return the ranks to be measured of an update whose rank is ``whole``, from 0."""
        asked = self.ranks or (_DOUBLED if whole <= _SMALL else _QUADRUPLED)
        return [0, *sorted({rank for rank in asked if rank < whole})]


def measure_ranks(
    subject: Subject,
    folder: Path,
    options: RankOptions,
    progress: Any,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure a subject's curves and return ``rank.json``; what was measured before is taken.

    ``progress`` has ``started(stage, skipped)`` and is called with what is done; ``say`` is told
    once how long the rest will take.
    """
    points = Points(subject, folder / "points", options.most, progress)
    scored = subject.questions is not None and not options.kl_only
    progress.started("update", False)
    update = points.update()
    lines = _lines(update, options.chosen(update["rank"]))
    progress.started("base and whole", False)
    for point in (BASE, WHOLE):
        points.movement(point)
        _ = scored and points.score(point)
    _plan(points, lines, scored, options.full, say)
    judge = _Judge(points, options, update, scored)
    curves = [_curve(judge, block, line, progress) for block, line in lines.items()]
    return {
        "base": subject.base.id,
        "update": {
            "path": str(subject.update),
            "sha256": update_hash(subject.update),
            **{key: update[key] for key in ("source", "rank", "uncut")},
            "matrices": sum(block["matrices"] for block in update["blocks"].values()),
            "blocks": _blocks(update),
        },
        "sets": {
            name: {"items": len(asked.answers), "positions": sum(map(len, asked.answers))}
            for name, asked in subject.asked.items()
        },
        "unit": "nats per answer token",
        "confidence": 0.95,
        "bootstraps": options.bootstraps,
        "share": options.share,
        "margin": options.margin,
        "moved": judge.moved(),
        "curves": curves,
        "together": _together(judge, curves[1:], progress),
    }


def _lines(
    update: Mapping[str, Any], ranks: Sequence[int]
) -> dict[str | None, list[tuple[int, Point]]]:
    """Return the points of each curve below the whole: the model's (None), and each block's."""
    blocks = list(update["blocks"])
    lines: dict[str | None, list[tuple[int, Point]]] = {
        None: [(rank, _of_all(rank, update)) for rank in ranks]
    }
    if len(blocks) > 1:
        lines |= {
            block: [(rank, Point(f"{block}-{rank}", {block: rank}, False)) for rank in ranks]
            for block in blocks
        }
    return lines


def _curve(
    judge: _Judge, block: str | None, line: Sequence[tuple[int, Point]], progress: Any
) -> dict[str, Any]:
    """Return a curve, its rows from rank 0 to the whole.

    A block is scored from the rank that keeps the movement up to the first that keeps the score
    too; at every rank where the options want it in full.
    """
    progress.started(block or "whole model", False)
    blocks = list(judge.update["blocks"])
    share = judge.options.share / (1 if block is None else len(blocks))
    with_score = judge.scored and (block is None or judge.options.full)
    whole: int = judge.update["rank"]
    rows: list[dict[str, Any]] = []
    line = [*line, (whole, WHOLE)]
    for done, (rank, point) in enumerate(line):
        progress("ranks", done, len(line))
        cut = dict.fromkeys(blocks if block is None else [block], rank)
        row = {"rank": rank, "energy": _energy(judge.update, cut)}
        rows.append({**row, **judge.row(point, share, with_score)})
    needed = _needed(rows, judge.still)["needed"]
    if judge.scored and not with_score and needed is not None:
        for row, (rank, point) in zip(rows, line, strict=True):
            if rank >= needed:
                row |= judge.row(point, share, True)
                if row["status"] == Status.PASS.value:
                    break
    return {"block": block, "points": rows, **_needed(rows, judge.still)}


def _together(
    judge: _Judge, curves: Sequence[Mapping[str, Any]], progress: Any
) -> dict[str, Any] | None:
    """Return the model with each block cut at the rank that it needs alone."""
    if not curves or judge.still:
        return None
    progress.started("blocks together", False)
    cut: dict[str, int] = {curve["block"]: curve["needed"] for curve in curves}
    point = Point("together-" + "-".join(map(str, cut.values())), cut)
    found = judge.row(point, judge.options.share, judge.scored)
    return {"ranks": cut, "energy": _energy(judge.update, cut), **found}


def _of_all(rank: int, update: Mapping[str, Any]) -> Point:
    """Return the model with every block cut at a rank; the base itself where nothing is left."""
    if not (rank or update["uncut"]):
        return BASE
    return Point(f"rank-{rank}", dict.fromkeys(update["blocks"], rank))


def _plan(
    points: Points,
    lines: Mapping[str | None, list[tuple[int, Point]]],
    scored: bool,
    full: bool,
    say: Callable[[str], None],
) -> None:
    """Say how many points there are to measure, and about how long that will take."""
    whole, *blocks = [[point for _, point in line] for line in lines.values()]
    of_blocks = [point for line in blocks for point in line]
    seconds = points.seconds(whole, scored) + points.seconds(of_blocks, scored and full)
    if seconds > 0:
        text = f"{count(len(whole))} ranks of the whole model"
        if of_blocks:
            text += f" and {count(len(of_blocks))} of its blocks"
        say(f"{text}: at most about {duration(seconds)} from here")


class _Judge:
    """Points as rows of the product: pooled KL with intervals, scores, and what they say."""

    def __init__(
        self, points: Points, options: RankOptions, update: Mapping[str, Any], scored: bool
    ) -> None:
        self.points = points
        self.options = options
        self.update = update
        self.scored = scored
        self.first = points.subject.first
        self.still = self.moved()[self.first]["kl"] <= STILL

    def moved(self) -> dict[str, Any]:
        """Return KL(tuned ‖ base) of each set."""
        sets = self.points.movement(BASE)["sets"]
        return {name: self._pooled(name, found["tuned_cut"]) for name, found in sets.items()}

    def row(self, point: Point, share: float, with_score: bool) -> dict[str, Any]:
        """Return a point's movement by set, its score, and whether it keeps both."""
        sets = self.points.movement(point)["sets"]
        base = self.points.movement(BASE)["sets"]
        row: dict[str, Any] = {"sets": {}, "score": None, "status": None}
        for name, found in sets.items():
            row["sets"][name] = {
                "kl_cut_base": self._pooled(name, found["cut_base"]),
                "kl_tuned_cut": self._pooled(name, found["tuned_cut"]),
                "lost": None
                if self.still
                else asdict(self._lost(found["tuned_cut"], base[name]["tuned_cut"])),
            }
        difference = None
        if with_score:
            row["score"], difference = self._scored(point)
        lost = row["sets"][self.first]["lost"]
        if point == WHOLE:
            row["status"] = Status.PASS.value  # what all others are held against
        elif lost is not None:
            judged = judge_rank(Interval(**lost), difference, share, self.options.margin)
            row["status"] = judged.value
        return row

    def _pooled(self, name: str, sums: Sequence[float]) -> dict[str, float]:
        """Return Σ KL / Σ positions with its bootstrap interval over items."""
        positions = [len(answer) for answer in self.points.subject.asked[name].answers]
        options = self.options
        found = bootstrap_ratio(sums, positions, resamples=options.bootstraps, seed=options.seed)
        return {"kl": found.estimate, "low": found.low, "high": found.high}

    def _lost(self, cut: Sequence[float], moved: Sequence[float]) -> Interval:
        return lost_movement(cut, moved, self.options.bootstraps, self.options.seed)

    def _scored(self, point: Point) -> tuple[dict[str, Any], Difference]:
        own, whole = self.points.score(point)["items"], self.points.score(WHOLE)["items"]
        scores = [row["score"] for row in own]
        interval = wilson_interval(sum(scores), len(scores))
        difference = paired_difference(scores, [row["score"] for row in whole])
        return {
            "correct": sum(scores),
            "items": len(scores),
            "score": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "less_whole": asdict(difference),
        }, difference


def _energy(update: Mapping[str, Any], ranks: Mapping[str, int]) -> float:
    """Return the share of ‖ΔW‖² of some blocks that each one's first directions hold."""
    parts = [(update["blocks"][block], rank) for block, rank in ranks.items()]
    held = sum(
        part["total"] * (1.0 if rank >= update["rank"] else part["energy"][rank])
        for part, rank in parts
    )
    return held / sum(part["total"] for part, _ in parts)


def _blocks(update: Mapping[str, Any]) -> dict[str, Any]:
    """Return of each block its share of ‖ΔW‖², its matrices, and the names of their modules."""
    total = sum(part["total"] for part in update["blocks"].values())
    return {
        block: {
            "energy": part["total"] / total,
            "matrices": part["matrices"],
            "targets": part["targets"],
        }
        for block, part in update["blocks"].items()
    }


def _needed(rows: Sequence[Mapping[str, Any]], still: bool) -> dict[str, Any]:
    """Return the smallest rank that suffices, and the smaller ones that may."""
    if still:
        return {"needed": None, "undecided": []}
    judged = {row["rank"]: Status(row["status"]) for row in rows}
    needed = needed_rank(judged)
    open_ = (r for r, status in judged.items() if status is Status.INSUFFICIENT_EVIDENCE)
    return {
        "needed": needed,
        "undecided": [rank for rank in open_ if needed is None or rank < needed],
    }
