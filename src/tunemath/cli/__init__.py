"""The command line: one file a command, parsing only, then one call of a public function."""

from __future__ import annotations

import errno
import sys
import traceback

__all__ = ["main"]

_BAD_INPUT = 2
_INTERNAL = 70
_LEARN = ("nbformat", "matplotlib", "markdown_it", "latex2mathml", "pygments")
# What torch says where an allocation fails, by its class or by its words.
_OUT_OF_MEMORY = ("OutOfMemoryError", "can't allocate memory", "out of memory")
_OF_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    from tunemath.cli.app import app
    from tunemath.shown import clean, one_line

    try:
        app(args=arguments)
    except Exception as error:
        said = _said(error)
        if said is None:
            print(clean("".join(traceback.format_exception(error))), file=sys.stderr, end="")
            said = f"internal error: {one_line(repr(error))}; please report it with the lines above"
            print(said, file=sys.stderr)
            sys.exit(_INTERNAL)
        print(f"error: {one_line(said)}", file=sys.stderr)
        sys.exit(_BAD_INPUT)


def _said(error: Exception) -> str | None:
    """Return what to tell of an error that the user can put right; None for a fault of ours."""
    from tunemath.errors import TunemathError

    if isinstance(error, TunemathError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("tunemath"):
        extra = "learn" if error.name in _LEARN else "train"
        return f"this command needs {error.name}; run: pip install 'tunemath[{extra}]'"
    if isinstance(error, OSError) and error.errno in _OF_PATHS:
        return f"{error.filename} is no path that can be used ({error.strerror}); correct it"
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or any(each in words for each in _OUT_OF_MEMORY):
        return (
            f"there is not enough memory ({words}); `tunemath plan` and `tunemath memory` say what "
            "a contract takes, and what to change"
        )
    return None
