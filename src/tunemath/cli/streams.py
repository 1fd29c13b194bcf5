"""Standard output and error as they are: without an encoding for all signs, closed, or full."""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from tunemath.errors import StorageError
from tunemath.storage import storage_errors

__all__ = ["is_unicode", "silence", "whole_output"]

_OUTPUT = "the output"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_PLAIN = "tunemath.plain"
_MARKS = {
    "→": "->", "‖": "||", "±": "+-", "≤": "<=", "≥": ">=", "×": "x", "·": "-", "…": "...",
    "✓": "+", "✗": "x", "–": "-", "—": "-", "−": "-", "’": "'", "“": '"', "”": '"', "Δ": "d",
    "Σ": "sum ", "λ": "lambda",
}  # fmt: skip


@contextmanager
def whole_output() -> Iterator[None]:
    """Let a command print inside whatever its streams are; all of it is written at the end.

    What an encoding lacks is written in ASCII, and nothing goes to a stream that is closed. Raises
    `StorageError` where a stream takes no more; a reader that has gone, as of ``| head``, is no
    error.
    """
    codecs.register_error(_PLAIN, _plain)
    _make_usable()
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            raise
        with storage_errors(_OUTPUT):  # what we write to a file is told where it is written
            raise
    finally:
        _flush(sys.stdout)
        _flush(sys.stderr)


def is_unicode(stream: TextIO) -> bool:
    """Say whether a stream's encoding has every sign."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "")[:3] == "utf"


def _make_usable() -> None:
    """Open what is closed, and let no sign be an error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure") and stream.errors in ("strict", "backslashreplace"):
            stream.reconfigure(errors="backslashreplace" if is_unicode(stream) else _PLAIN)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Write signs that an encoding lacks in ASCII; an error handler of codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    plain = (
        _MARKS.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs
    )
    return "".join(plain), error.end


def _flush(stream: TextIO) -> None:
    try:
        with storage_errors(_OUTPUT):
            stream.flush()
    except OSError as error:
        silence(stream)
        if isinstance(error, StorageError):
            raise
        if not isinstance(error, BrokenPipeError):
            raise StorageError(f"cannot write {_OUTPUT}: {error.strerror or error}") from error


def silence(stream: TextIO) -> None:
    """Send what a stream can't write nowhere, so that Python's own end succeeds."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
