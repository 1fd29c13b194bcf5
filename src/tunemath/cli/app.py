"""The `tunemath` command and its sub-commands."""

from __future__ import annotations

from typing import Annotated

import typer

from tunemath.cli import (
    adapters,
    algebra,
    contracts,
    count,
    learn,
    memory,
    products,
    rank,
    spectrum,
    stages,
)
from tunemath.version import __version__

__all__ = ["app"]

app = typer.Typer(
    name="tunemath",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Write a fine-tune's five choices in one file, see what they imply, run them, and prove "
        "what was trained.\n\nExit codes: 0 passed, 1 a required check failed, 2 bad input, "
        "3 not enough evidence, 70 an internal error."
    ),
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tunemath {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


contracts.register(app)
count.register(app)
memory.register(app)
stages.register(app)
spectrum.register(app)
rank.register(app)
adapters.register(app)
products.register(app)
algebra.register(app)
learn.register(app)
