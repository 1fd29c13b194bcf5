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
    from tunemath.cli.app import app
    from tunemath.errors import TunemathError
    from tunemath.extras import install_command
    from tunemath.runner.launchers import refuse_several_processes

    try:
        refuse_several_processes()
        app(args=arguments, prog_name="tunemath")
    except TunemathError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_BAD_INPUT)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tunemath"):
            raise
        extra = "learn" if error.name in _LEARN else "train"
        print(
            f"error: this command needs {error.name}; run: {install_command(extra)}",
            file=sys.stderr,
        )
        sys.exit(_BAD_INPUT)
    except Exception as error:
        traceback.print_exception(error)
        print(f"internal error: {error!r}; please report it with the lines above", file=sys.stderr)
        sys.exit(_INTERNAL)
