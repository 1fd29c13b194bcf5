"""The points of an update's curves, each measured once: KL and answers of the model cut at a rank.

A point is kept in a file of its own, below a folder named by the hashes of base, update, items and
settings; so a second call, or one after a kill, measures only what is not there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunemath.errors import ModelError
from tunemath.pipeline.measuring import answered
from tunemath.pipeline.questions import Questions
from tunemath.runner.progress import Progress
from tunemath.runner.resolve import ResolvedModel
from tunemath.storage import canonical_json, hash_bytes, hash_file, read_json, write_json

if TYPE_CHECKING:
    from tunemath.runner.curves import Asked
    from tunemath.runner.heads import States
    from tunemath.runner.truncation import Cut, Truncation

__all__ = ["BASE", "WHOLE", "Point", "Points", "Subject", "update_hash"]

_FORMAT = 1
_EXACT = 1e-3  # of the movement, by which the update in the weights may differ from the tuned model


@dataclass(frozen=True)
class Subject:
    """A base, an update of it, and what both are asked."""

    base: ResolvedModel
    update: Path
    asked: Mapping[str, Asked]
    """By set: prompts and the answers that are read after them, as ids. The first set decides."""
    pad: int
    questions: Questions | None = None
    """What is answered and scored, the items of the first set; None where only KL is measured."""

    @property
    def first(self) -> str:
        """The set that decides."""
        return next(iter(self.asked))

    def key(self) -> str:
        """Return one hash of all that a point depends on beside its rank."""
        settings: dict[str, Any] = {"format": _FORMAT, "pad": self.pad}
        if self.questions is not None:
            settings["longest"] = self.questions.evaluation.max_new_tokens
            settings["stop"] = self.questions.stop_ids
            settings["items"] = [[i.id, i.reference, i.choices] for i in self._scored]
        sets = {name: [asked.prompts, asked.answers] for name, asked in self.asked.items()}
        parts = [self.base.weights_hash(), update_hash(self.update), sets, settings]
        return hash_bytes(canonical_json(parts))

    @property
    def _scored(self) -> list[Any]:
        return self.questions.items[self.first] if self.questions is not None else []

    def score(self, model: Any) -> list[dict[str, Any]]:
        """Let a model answer the items of the first set."""
        assert self.questions is not None
        prompts = self.questions.prompts[self.first]
        rows, _ = answered(self.questions, model, self._scored, prompts, "answers")
        return [{key: row[key] for key in ("id", "output", "score")} for row in rows]


@dataclass(frozen=True)
class Point:
    """One model on the curves: its name, and the rank of each type of block that is cut."""

    name: str
    cut: Cut | None
    """None for the base."""
    every_set: bool = True
    """Whether all sets are read, and not only the first, which decides."""


BASE, WHOLE = Point("base", None), Point("whole", {})


class Points:
    """What has been measured of a subject, and the models in memory to measure the rest."""

    def __init__(self, subject: Subject, folder: Path, ranks: int, progress: Progress) -> None:
        self.subject = subject
        self.folder = folder / subject.key()[:16]
        self.ranks = ranks
        self.progress = progress

    def update(self) -> dict[str, Any]:
        """Return what the update is: where it is taken from, its rank, the energy at each rank."""
        return self._kept(f"update-{self.ranks}", self._describe)

    def movement(self, point: Point) -> dict[str, Any]:
        """Return KL(cut ‖ base) and KL(tuned ‖ cut) in nats by set, summed over each item."""
        return self._kept(f"{point.name}.kl", lambda: self._movement(point))

    def score(self, point: Point) -> dict[str, Any]:
        """Return the answers and scores of the first set's items."""
        return self._kept(f"{point.name}.score", lambda: self._score(point))

    def seconds(self, points: Iterable[Point], scored: bool) -> float:
        """Return how long missing points will take at most, by what the whole update took."""
        missing = [(each, "kl") for each in points if not self._path(f"{each.name}.kl").exists()]
        total = len(missing) * self.movement(WHOLE)["seconds"]
        if scored:
            missing = [p for p in points if not self._path(f"{p.name}.score").exists()]
            total += len(missing) * self.score(WHOLE)["seconds"]
        return total

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = self._path(name)
        if not path.exists():
            write_json(path, make())
        return read_json(path)

    @cached_property
    def _live(self) -> tuple[Truncation, dict[str, States], dict[str, States]]:
        """The base in memory with the update to be cut, and the states of tuned and base by set."""
        from tunemath.runner.curves import load_tuned, open_update

        subject = self.subject
        tuned = load_tuned(subject.base, subject.update)
        after = {name: self._states(tuned, name) for name in subject.asked}
        update = open_update(
            subject.base,
            tuned,
            subject.update,
            self.ranks,
            lambda done, total: self.progress("singular values", done, total),
        )
        before = {name: self._states(update.model, name) for name in subject.asked}
        anchored = update.anchored
        after = {name: anchored(states) for name, states in after.items()}
        before = {name: anchored(states) for name, states in before.items()}
        return update, after, before

    def _states(self, model: Any, name: str) -> States:
        from tunemath.runner.curves import answer_states

        asked = self.subject.asked[name]
        total = len(asked.prompts)
        return answer_states(
            model, asked, pad=self.subject.pad, tick=lambda n: self.progress("KL", n, total)
        )

    @contextmanager
    def _model(self, point: Point) -> Any:
        update = self._live[0]
        if point.cut is None:
            yield update.model
        else:
            with update.at(point.cut) as model:
                yield model

    def _describe(self) -> dict[str, Any]:
        update = self._live[0]
        most = min(self.ranks, update.rank)
        return {
            "source": update.source,
            "rank": update.rank,
            "uncut": list(update.uncut),
            "blocks": {
                block: {
                    "matrices": sum(part.block == block for part in update.parts),
                    "targets": sorted(
                        {p.name.split(".")[-2] for p in update.parts if p.block == block}
                    ),
                    "total": sum(part.total for part in update.parts if part.block == block),
                    "energy": [update.energy({block: r}, (block,)) for r in range(most + 1)],
                }
                for block in update.blocks
            },
        }

    def _movement(self, point: Point) -> dict[str, Any]:
        from tunemath.runner.curves import row_kl

        update, after, before = self._live
        started = time.perf_counter()
        sets = {}
        with self._model(point) as model:
            for name, asked in self.subject.asked.items():
                if not (point.every_set or name == self.subject.first):
                    continue
                states = before[name] if point.cut is None else update.anchored(
                    self._states(model, name)
                )  # fmt: skip
                sets[name] = {
                    "cut_base": row_kl(states, before[name], asked),
                    "tuned_cut": row_kl(after[name], states, asked),
                }
                if point == WHOLE:
                    self._refuse_other_model(sets[name], row_kl(after[name], before[name], asked))
        return {"seconds": time.perf_counter() - started, "sets": sets}

    def _refuse_other_model(self, found: Mapping[str, list[float]], moved: list[float]) -> None:
        """Refuse an update that, written into the weights, is not the tuned model."""
        if sum(found["tuned_cut"]) > max(_EXACT * sum(moved), 1e-5 * len(moved)):
            raise ModelError(
                f"written into the base's weights, {self.subject.update} answers otherwise than "
                f"the tuned model (KL {sum(found['tuned_cut']):.3g} nats, of {sum(moved):.3g} from "
                "the base), so what it does is no change of weights alone, and can't be cut"
            )

    def _score(self, point: Point) -> dict[str, Any]:
        started = time.perf_counter()
        with self._model(point) as model:
            items = self.subject.score(model)
        return {"seconds": time.perf_counter() - started, "items": items}


def update_hash(folder: Path) -> str:
    """Return one SHA-256 over an update's weights and settings."""
    files = [*folder.glob("*.safetensors"), *folder.glob("*config.json"), folder / "update.json"]
    found = {path.name: hash_file(path) for path in sorted(files) if path.is_file()}
    if not any(name.endswith(".safetensors") for name in found):
        raise ModelError(
            f"{folder} has no safetensors; give the folder of a model, of a PEFT adapter, or the "
            "adapter or weights folder of a run"
        )
    return hash_bytes(canonical_json(found))
