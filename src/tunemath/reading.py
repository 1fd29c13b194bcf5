"""Files that somebody gives: regular ones alone, and no more of them than their kind has.

A path may name a pipe that nobody writes to, a device without an end, a loop of links, or the
memory of a process. Each is refused with an error of the caller's class that names it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO

from tunemath.errors import TunemathError
from tunemath.shown import one_line

__all__ = ["LONGEST_JSON", "open_file", "parse_json", "read_file", "read_text"]

LONGEST_JSON = 2**26
"""The bytes of the longest JSON file of a model but its tokenizer and its weights' headers."""

_ENDLESS = 2**26  # the most that is read of a file which says of itself that it is empty
_DEEPEST = 100
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a pair that stands for one character
_LFS = b"version https://git-lfs"

_REASONS = {
    errno.EACCES: "may not be read; change its permissions",
    errno.EPERM: "may not be read; change its permissions",
    errno.EISDIR: "is a folder; give a file",
    errno.ENOTDIR: "is below something that is a file, not a folder; correct the path",
    errno.ELOOP: "is a loop of symbolic links; give the file itself",
    errno.ENAMETOOLONG: "is a longer name than a file can have; correct the path",
}


def open_file(
    path: str | Path, error: type[TunemathError], absent: str = "does not exist"
) -> BinaryIO:
    """Open a regular file; ``absent`` says what there is to say of one that isn't there."""
    try:
        # Without O_NONBLOCK a pipe waits for somebody to write into it.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        file = os.fdopen(handle, "rb")
    except FileNotFoundError:
        raise error(f"{one_line(path, 300)} {absent}") from None
    except (OSError, ValueError) as why:
        raise error(f"{one_line(path, 300)} {_reason(why)}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise error(f"{one_line(path, 300)} is a pipe, a device or a socket; give a regular file")
    return file


def read_file(
    path: str | Path,
    error: type[TunemathError],
    most: int | None = None,
    absent: str = "does not exist",
) -> bytes:
    """Return what a regular file holds, of at most ``most`` bytes where that is given."""
    with open_file(path, error, absent) as file:
        limit = most or max(os.fstat(file.fileno()).st_size, _ENDLESS)
        try:
            data = file.read(limit + 1)
        except OSError as why:
            raise error(f"{one_line(path, 300)} {_reason(why)}") from None
    if len(data) > limit:
        raise error(f"{one_line(path, 300)} has more than {limit:,} bytes; give a file of its kind")
    if data.startswith(_LFS):
        raise error(f"{path} is a Git LFS pointer, not the file; run `git lfs pull`")
    return data


def read_text(
    path: str | Path,
    error: type[TunemathError],
    most: int | None = None,
    absent: str = "does not exist",
) -> str:
    """Return a regular file as text, without a mark of its order of bytes at its start."""
    data = read_file(path, error, most, absent)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as why:
        raise error(f"{path} is not UTF-8 text ({why.reason}); save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(
    data: bytes | str, path: str | Path, error: type[TunemathError], fix: str = "download it again"
) -> Any:
    """Return what JSON says; ``path`` names it where it is damaged, or nested beyond all use."""
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        value = json.loads(text)
    except RecursionError:
        raise error(f"{path} is not valid JSON of its kind: nested beyond all use") from None
    except ValueError as why:
        raise error(f"{path} is not valid JSON ({one_line(why, 200)}); {fix}") from None
    if _HALF.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as why:
            half = f"\\u{ord(why.object[why.start]):04x}"
            raise error(
                f"{path} holds {half}, half of a character, which is no text; {fix}"
            ) from None
    if _is_deep(value):
        raise error(f"{path} is not valid JSON of its kind: nested more than {_DEEPEST} deep")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST + 1):
        holders = [each for each in level if isinstance(each, dict | list)]
        if not holders:
            return False
        level = [
            inner
            for each in holders
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return True


def _reason(why: OSError | ValueError) -> str:
    if isinstance(why, UnicodeError):
        return "is not UTF-8; correct the path"
    if isinstance(why, OSError):
        return _REASONS.get(why.errno or 0, f"cannot be read: {why.strerror or why}")
    return f"is no path ({why}); correct it"
