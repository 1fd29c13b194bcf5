"""A learner's folder: one file an exercise, and what has been reached."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunemath.course.book import Exercise, exercises
from tunemath.course.grading import Grade
from tunemath.errors import CourseError, RunError
from tunemath.storage import read_json, storage_errors, write_json, write_text

__all__ = ["Workspace"]

_PROGRESS = "progress.json"
_NEW: Mapping[str, Any] = {"passed": False, "tries": 0, "hints": 0}


class Workspace:
    """Answers and progress in a folder; it is made when something is first written to it."""

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise CourseError(f"{folder} is a file; give a folder for your answers with --dir")
        self.folder = folder

    def path(self, exercise: Exercise) -> Path:
        """Return the file of an exercise's answer."""
        return self.folder / f"{exercise.number:02d}-{exercise.name}.py"

    def source(self, exercise: Exercise) -> str:
        """Return the answer as it stands; the starter's code where there is none yet."""
        path = self.path(exercise)
        if not path.is_file():
            return exercise.starter
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CourseError(f"{path} cannot be read ({error}); save it as UTF-8 text") from None

    def open(self, exercise: Exercise) -> Path:
        """Return the answer's file, made from the starter if there is none."""
        path = self.path(exercise)
        if not path.exists():
            self.save(exercise, exercise.starter)
        return path

    def save(self, exercise: Exercise, source: str) -> None:
        """Keep an answer."""
        write_text(self.path(exercise), source)

    def reset(self, exercise: Exercise) -> Path | None:
        """Begin an exercise again; return where the former answer was put, if there was another."""
        path, kept = self.path(exercise), None
        if path.is_file() and self.source(exercise) != exercise.starter:
            taken = {other.name for other in self.folder.glob(f"{path.stem}.old*.py")}
            count = next(k for k in range(1, 10**6) if f"{path.stem}.old{k}.py" not in taken)
            kept = path.with_name(f"{path.stem}.old{count}.py")
            with storage_errors(kept):
                path.rename(kept)
        self.save(exercise, exercise.starter)
        self._update(exercise, **_NEW)
        return kept

    def progress(self) -> dict[str, dict[str, Any]]:
        """Return, by name, whether each exercise was passed, after how many tries and hints."""
        path = self.folder / _PROGRESS
        found: Any = {}
        if path.is_file():
            try:
                found = read_json(path)
            except RunError as error:
                raise CourseError(f"{error}") from error
        if not isinstance(found, dict):
            raise CourseError(f"{path} is not a record of progress; delete it to begin again")
        known = {each.name: found.get(each.name) for each in exercises()}
        return {
            name: {**_NEW, **(entry if isinstance(entry, dict) else {})}
            for name, entry in known.items()
        }

    def record(self, exercise: Exercise, grade: Grade) -> None:
        """Count a try. What was passed stays passed."""
        entry = self.progress()[exercise.name]
        self._update(
            exercise, passed=entry["passed"] or grade.passed, tries=int(entry["tries"]) + 1
        )

    def hint(self, exercise: Exercise) -> str | None:
        """Return the next hint, each stronger than the one before; None after the last."""
        given = int(self.progress()[exercise.name]["hints"])
        if given >= len(exercise.hints):
            return None
        self._update(exercise, hints=given + 1)
        return exercise.hints[given]

    def next(self) -> Exercise | None:
        """Return the first exercise that was not passed; None when all were."""
        progress = self.progress()
        return next((each for each in exercises() if not progress[each.name]["passed"]), None)

    def _update(self, exercise: Exercise, **changes: Any) -> None:
        progress = self.progress()
        progress[exercise.name] |= changes
        write_json(self.folder / _PROGRESS, progress)
