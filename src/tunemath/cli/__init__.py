"""The command line: one file a command, parsing only, then one call of a public function."""

from __future__ import annotations

import errno
import os
import sys
import traceback

__all__ = ["main"]

_BAD_INPUT = 2
_INTERNAL = 70
_LEARN = ("nbformat", "matplotlib", "markdown_it", "latex2mathml", "pygments")
_OF_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.EPERM)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    from tunemath.cli.streams import silence

    # torch reads it at its first allocation: blocks in huge pages cost a tenth of a step less.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        _main(arguments)
    except OSError:  # standard error takes nothing either, so the code must say it all
        sys.exit(_BAD_INPUT)
    finally:
        silence(sys.stderr)


def _main(arguments: list[str] | None) -> None:
    from tunemath.cli.app import app
    from tunemath.cli.streams import whole_output
    from tunemath.shown import clean, one_line

    try:
        with whole_output():
            app(args=arguments, prog_name="tunemath")
    except Exception as error:
        said = _said(error)
        if said is None:
            print(clean("".join(traceback.format_exception(error))), file=sys.stderr, end="")
            told = f"internal error: {one_line(repr(error))}; please report it with the lines above"
            print(told, file=sys.stderr)
            sys.exit(_INTERNAL)
        print("error: " + "\n  ".join(map(one_line, said)), file=sys.stderr)
        sys.exit(_BAD_INPUT)


def _said(error: Exception) -> list[str] | None:
    """Return the lines that tell what the user can put right; None for a fault of ours."""
    from tunemath.errors import DataError, TunemathError, is_of_memory

    if isinstance(error, DataError):
        return [error.message, *error.faults]
    if isinstance(error, TunemathError):
        return [str(error)]
    if isinstance(error, ImportError) and not (error.name or "").startswith("tunemath"):
        return [_lacking(error)]
    if isinstance(error, OSError) and error.errno in _OF_PATHS:
        return [f"{error.filename} is no path that can be used ({error.strerror}); correct it"]
    if is_of_memory(error):
        words = f"{type(error).__name__}: {error}"
        return [
            f"there is not enough memory ({words}); `tunemath plan` and `tunemath memory` say what "
            "a contract takes, and what to change"
        ]
    return None


def _lacking(error: ImportError) -> str:
    """Say which library is not there, or that those that are do not go together."""
    from tunemath.extras import install_command

    name = error.name or ""
    extra = "learn" if name.partition(".")[0] in _LEARN else "train"
    if isinstance(error, ModuleNotFoundError) and "." not in name:
        return f"this command needs {name}; run: {install_command(extra)}"
    why = " ".join(str(error).split())[:300]
    command = install_command(extra).replace("install", "install --upgrade", 1)
    return f"the installed libraries do not go together: {why}; run: {command}"
