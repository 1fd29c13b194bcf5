"""Files that appear whole or not at all, and the hashes that bind them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tunemath.errors import RunError, StorageError, TunemathError
from tunemath.reading import parse_json, read_file, read_text

try:
    import fcntl
except ImportError:  # Windows, where a file that is open can be neither renamed nor deleted
    fcntl = None

__all__ = [
    "canonical_json",
    "hash_bytes",
    "hash_file",
    "new_folder",
    "read_json",
    "read_jsonl",
    "remove_leftovers",
    "storage_errors",
    "write_json",
    "write_jsonl",
    "write_text",
]

_FULL = "the disk is full; free some space and run the same command again"
_REASONS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "no file may become that large here; raise the limit (ulimit -f), or choose "
    "another folder",
    errno.EIO: "the disk failed (input/output error); choose a folder on another",
    errno.EACCES: "no permission; choose another folder or change its permissions",
    errno.EPERM: "no permission; choose another folder or change its permissions",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "the path is a folder, not a file",
}
_REDO = "delete it and run again"
# What torch, safetensors and NumPy report in words only, as expressions; the last five say that
# nothing more could be written, and not why.
_WORDS = {
    **{
        re.escape(os.strerror(code)): _REASONS[code]
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    },
    "file write failed": _FULL,
    "PytorchStreamWriter failed": _FULL,
    "unexpected pos": _FULL,
    "iostream error": _FULL,
    r"\d requested and \d+ written": _FULL,
}
_PART = ".tunemath-part"
_TEMPORARY = re.compile(rf"\..+\.[a-z0-9_]{{8}}{re.escape(_PART)}")


@contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into a `StorageError` that names ``path``."""
    try:
        yield
    except TunemathError:
        raise
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise StorageError(f"cannot write {path}: {reason}") from error


def _reason(error: Exception) -> str | None:
    """Return why nothing could be written; None for an error that is about something else."""
    code = error.errno if isinstance(error, OSError) else None
    if code is not None:
        return _REASONS.get(code)
    text = str(error)
    return next((reason for words, reason in _WORDS.items() if re.search(words, text)), None)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Fill the folder that is given inside; it appears as ``folder`` whole, or not at all.

    What a process that was killed left over is deleted by the next. Raises `RunError` where
    ``folder`` exists, or where another process is writing it.
    """
    from filelock import FileLock, Timeout

    _refuse_existing(folder)
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = folder.with_name(f".{folder.name}.part")
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise RunError(f"another process is writing {folder}; wait for it to end") from None
        try:
            _refuse_existing(folder)  # another process may have made it meanwhile
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            yield part
            _refuse_existing(folder)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def _refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise RunError(f"{folder} exists already; give another folder, or delete it first")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` holds all of it or what it held before.

    What killed processes left half-written in its folder is deleted.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        handle, temporary = _temporary(path)
        held = os.dup(handle) if fcntl else None  # until it has its name, and is no leftover
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
        finally:
            if held is not None:
                os.close(held)


def _temporary(path: Path) -> tuple[int, str]:
    """Open a new file beside ``path``, locked as long as it, or a copy of its handle, is open."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PART)
        if fcntl is None:
            return handle, name
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):
            return handle, name
        os.close(handle)  # another process took it for a leftover before it was locked


def remove_leftovers(folder: Path) -> None:
    """Delete the files of `write_text` in a folder that no living process is writing."""
    if fcntl is None:
        return
    for path in folder.glob(f".*{_PART}"):
        if not (_TEMPORARY.fullmatch(path.name) and path.is_file()):
            continue
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


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
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")  # a file's name need not be UTF-8


def hash_bytes(data: bytes) -> str:
    """Return the SHA-256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
