"""`tunemath try`: asking a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunemath.cli.options import AsJson, RunFolderArgument, Runs, find_run
from tunemath.cli.output import print_json, say

__all__ = ["register"]

_RUNS = Path("runs")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("try")(_try)


def _try(
    name: RunFolderArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to ask.")],
    system: Annotated[
        str | None,
        typer.Option(help="System prompt; the training rows' own when they share one."),
    ] = None,
    runs: Runs = _RUNS,
    as_json: AsJson = False,
) -> None:
    """Ask the base and the tuned model the same thing.

    Example: `tunemath try dates-sft "15 mars 2024"`
    """
    from tunemath.pipeline.using import ask

    answer = ask(find_run(name, runs), prompt, system)
    if as_json:
        print_json(answer)
    else:
        say(f"base:  {answer['base']}\ntuned: {answer['tuned']}")
