"""The command line: one file a command, parsing only, then one call of a public function."""

from __future__ import annotations

import sys
import traceback

__all__ = ["main"]

_BAD_INPUT = 2
_INTERNAL = 70
_LEARN = ("nbformat", "matplotlib", "markdown_it", "latex2mathml", "pygments")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    from tunemath.cli.streams import silence

    try:
        _main(arguments)
    except OSError:  # standard error takes nothing either, so the code must say it all
        sys.exit(_BAD_INPUT)
    finally:
        silence(sys.stderr)


def _main(arguments: list[str] | None) -> None:
    from tunemath.cli.app import app
    from tunemath.cli.streams import whole_output
    from tunemath.errors import TunemathError
    from tunemath.runner.launchers import refuse_several_processes

    try:
        refuse_several_processes()
        with whole_output():
            app(args=arguments, prog_name="tunemath")
    except TunemathError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_BAD_INPUT)
    except ImportError as error:
        if (error.name or "").startswith("tunemath"):
            raise
        print(f"error: {_lacking(error)}", file=sys.stderr)
        sys.exit(_BAD_INPUT)
    except Exception as error:
        traceback.print_exception(error)
        print(f"internal error: {error!r}; please report it with the lines above", file=sys.stderr)
        sys.exit(_INTERNAL)


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
