"""Files that appear whole or not at all, and the hashes that bind them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunemath.errors import RunError, StorageError
from tunemath.reading import parse_json, read_file, read_text

__all__ = [
    "canonical_json",
    "hash_bytes",
    "hash_file",
    "new_folder",
    "read_json",
    "read_jsonl",
    "storage_errors",
    "write_json",
    "write_jsonl",
    "write_text",
]

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EACCES: "no permission; choose another folder or change its permissions",
    errno.EPERM: "no permission; choose another folder or change its permissions",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "the path is a folder, not a file",
}
_REDO = "delete it and run again"
_FULL = (
    "No space left",
    "os error 28",
    "file write failed",
    "PytorchStreamWriter failed",
    "unexpected pos",
)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into a `StorageError` that names ``path``."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError) or error.errno not in _REASONS:
            raise
        raise StorageError(f"cannot write {path}: {_REASONS[error.errno]}") from error
    except Exception as error:  # torch and safetensors report a full disk in words only
        if not any(words in str(error) for words in _FULL):
            raise
        raise StorageError(f"cannot write {path}: {_REASONS[errno.ENOSPC]}") from error


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill the folder that is given inside; it appears as ``folder`` whole, or not at all.

    What a process that was killed left over is deleted by the next. Raises `RunError` where
    ``folder`` exists, or where another process is writing it.
    """
    from filelock import FileLock, Timeout

    if folder.exists():
        raise RunError(f"{folder} exists already; give another folder, or delete it first")
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = folder.with_name(f".{folder.name}.part")
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise RunError(f"another process is writing {folder}; wait for it to end") from None
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            yield part
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def write_text(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` holds all of it or what it held before."""
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: list[Any]) -> None:
    """Write one JSON object a line."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_text(path, "".join(lines))


def read_json(path: Path) -> Any:
    """Read a product of a run; a missing or broken one is a `RunError` that names it."""
    absent = "is missing; run `tunemath run` for this contract first"
    return parse_json(read_file(path, RunError, absent=absent), path, RunError, _REDO)


def read_jsonl(path: Path) -> list[Any]:
    """Read a product of one JSON object a line."""
    text = read_text(path, RunError)
    return [parse_json(line, path, RunError, _REDO) for line in text.split("\n") if line]


def canonical_json(value: Any) -> bytes:
    """Return the one byte string that stands for ``value``: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def hash_bytes(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
