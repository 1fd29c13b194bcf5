"""What tunemath remembers between commands; all of it can be worked out again.

A cache that can't be read or written is one that isn't there: no command fails for it.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunemath.errors import StorageError
from tunemath.storage import hash_file, write_json, write_text

__all__ = ["cache_folder", "file_hash", "keep", "recall"]

_HASHES = "hashes.json"
_TICK = 100_000_000
"""Nanoseconds within which two changes of a file may bear the same time."""
_hashed: dict[str, list[Any]] = {}
"""What this process has hashed itself: path → what marks the file, SHA-256."""


def cache_folder() -> Path:
    """Return tunemath's cache: $TUNEMATH_CACHE, else a folder in the user's cache.

    Raises `StorageError` where the user has no home.
    """
    given = os.environ.get("TUNEMATH_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "tunemath"
    except RuntimeError as error:
        raise StorageError(
            "this user has no home folder to keep a cache in; set TUNEMATH_CACHE to a folder"
        ) from error


def recall(kind: str, key: str, folder: Path | None = None) -> str | None:
    """Return the text that was kept of a kind under a key; None where none can be read.

    ``folder`` is where texts of this kind are kept, tunemath's own unless given.
    """
    with suppress(OSError, UnicodeDecodeError):
        return _place(kind, key, folder).read_text("utf-8")
    return None


def keep(kind: str, key: str, text: str, folder: Path | None = None) -> None:
    """Keep a text for `recall`, if it can be kept."""
    with suppress(OSError, ValueError):  # a name or a text that is no UTF-8, too
        write_text(_place(kind, key, folder), text)


def _place(kind: str, key: str, folder: Path | None) -> Path:
    return (folder or cache_folder() / kind) / f"{key}.json"


def file_hash(path: Path, anew: bool = False) -> str:
    """Return a file's SHA-256, remembered as long as nothing that marks the file changes.

    Marks are size, both times of change, device and inode: a file whose content alone changed, as
    on a failing disk, is noticed only where it is read ``anew``, once in a process.
    """
    name, marks = str(path.resolve()), _marks(path)
    for memory in (_hashed, {} if anew else _remembered()):
        known = memory.get(name)
        if isinstance(known, list) and known[:-1] == marks:
            return known[-1]
    found = hash_file(path)
    if time.time_ns() - max(marks[1:3]) > _TICK:
        _hashed[name] = [*marks, found]
        if not anew:
            _remember(name, _hashed[name])
    return found


def _marks(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_dev, stat.st_ino]


def _remembered() -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):  # damaged, too
        known = json.loads((cache_folder() / _HASHES).read_text("utf-8"))
        return known if isinstance(known, dict) else {}
    return {}


def _remember(name: str, entry: list[Any]) -> None:
    known = _remembered().items()
    lasting = {key: each for key, each in known if isinstance(each, list) and os.path.exists(key)}
    with suppress(OSError, ValueError):
        write_json(cache_folder() / _HASHES, {**lasting, name: entry})
