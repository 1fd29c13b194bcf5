"""A run's folder: what each stage read, what it wrote, and whether that still holds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tunemath.errors import RunError
from tunemath.runner.bound import MANIFEST, UPDATES, altered, key_of, read_manifest
from tunemath.storage import (
    hash_file,
    read_json,
    remove_leftovers,
    storage_errors,
    write_json,
)

__all__ = ["RunFolder", "differences"]


class RunFolder:
    """``runs/NAME``: products, and a manifest that binds each to the hashes it was made from."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def manifest_path(self) -> Path:
        """Where the chain of hashes is kept."""
        return self.path / MANIFEST

    def manifest(self) -> dict[str, Any]:
        """Return the manifest; an empty one for a new run."""
        if not self.manifest_path.exists():
            return {"run": self.path.name, "stages": {}}
        return read_manifest(self.manifest_path)

    def forget_unreadable(self) -> None:
        """Remove a manifest that nothing can be told from, so that every stage is done anew."""
        try:
            self.manifest()
        except RunError:
            self.manifest_path.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; a second process on the same run is refused, a dead one is not."""
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise RunError(
                    f"another process is working on {self.path}; wait for it, or use --set name=…"
                ) from None
        try:
            self._remove_leftovers()
            yield
        finally:
            lock.release()

    def _remove_leftovers(self) -> None:
        """Delete what a process that was killed left half-written in the folder."""
        for folder in (self.path, *(path for path in self.path.glob("*") if path.is_dir())):
            remove_leftovers(folder)
        for name in UPDATES:
            shutil.rmtree(self.path / f".{name}.part", ignore_errors=True)

    def busy(self) -> bool:
        """Say whether another process holds the folder; nothing is written to find out."""
        if not (self.path / ".lock").exists():
            return False
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except OSError:  # a folder, or a disk, that may only be read
            return False
        lock.release()
        return False

    def recorded(self, stage: str) -> dict[str, Any] | None:
        """Return what the manifest holds of a stage."""
        return self.manifest()["stages"].get(stage)

    def holds(self, stage: str, inputs: Mapping[str, Any]) -> bool:
        """Say whether a stage is done: same inputs, and every product as it was written."""
        entry = self.recorded(stage)
        return entry is not None and entry["key"] == key_of(inputs) and not self.broken(stage)

    def broken(self, stage: str) -> list[str]:
        """Return a recorded stage's products that are not as they were written, or not its own."""
        return list(self._altered(stage))

    def need(self, stage: str, said: str) -> None:
        """Raise `RunError` where a stage has not been recorded, or its products are altered.

        ``said`` is what the stage gives, and the command for it.
        """
        if self.recorded(stage) is None:
            raise RunError(f"{self.path} has no {said}")
        again = "train again with --fresh" if stage == "train" else f"run `tunemath {stage}` again"
        for name, what in self._altered(stage).items():
            raise RunError(
                f"{self.path / name} {what} after {stage} was recorded in {MANIFEST}; put back "
                f"what was there, or {again}"
            )

    def _altered(self, stage: str) -> dict[str, str]:
        stages = self.manifest()["stages"]
        if stage not in stages:
            return {}
        known = {name for entry in stages.values() for name in entry["products"]}
        return altered(self.path, stages[stage]["products"], known)

    def execute(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        action: Callable[[], list[str]],
        about: Mapping[str, Any],
    ) -> None:
        """Run a stage and record it; ``action`` returns the names of the files it wrote."""
        started = time.perf_counter()
        products = action()
        manifest = {**self.manifest(), **about}
        manifest["stages"][stage] = {
            "key": key_of(inputs),
            "inputs": dict(inputs),
            "products": {name: hash_file(self.path / name) for name in products},
            "seconds": round(time.perf_counter() - started, 2),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(self.manifest_path, manifest)

    def write(self, name: str, value: Any) -> str:
        """Write a JSON product and return its name."""
        write_json(self.path / name, value)
        return name

    def read(self, name: str) -> Any:
        """Read a JSON product."""
        return read_json(self.path / name)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which inputs differ between two runs of a stage, with both values."""
    return [
        _difference(name, before.get(name), now.get(name))
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _difference(name: str, old: Any, new: Any) -> str:
    """Say in words what differs; records are compared key by key, hashes are not spelled out."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
        return ", ".join(_difference(f"{name}.{k}", old.get(k), new.get(k)) for k in sorted(keys))
    if _is_content(old):
        return f"{name} has other content"
    return f"{name} {old} → {new}"


def _is_content(value: Any) -> bool:
    """Say whether a value is a hash, or has one in it."""
    if isinstance(value, list):
        return any(_is_content(each) for each in value)
    return isinstance(value, str) and len(value) == 64
