"""Options that several commands share, and how results are printed.

What a command needs is imported when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tunemath.pipeline import Run

__all__ = [
    "AsJson",
    "Continue",
    "ContractPath",
    "Fresh",
    "Method",
    "MethodSettings",
    "ModelPath",
    "Overrides",
    "PeftConfigPath",
    "RunFolderArgument",
    "Runs",
    "StageProgress",
    "find_run",
    "open_run",
]

ContractPath = Annotated[Path, typer.Argument(metavar="CONTRACT", help="The contract's YAML file.")]
ModelPath = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, a config.json, safetensors or their index, a GGUF file; or smollm2-135m.",
    ),
]
Method = Annotated[str, typer.Option("--method", "-m", help="As `space.method` in a contract.")]
MethodSettings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="The method's, as in rank=16."),
]
PeftConfigPath = Annotated[
    Path | None, typer.Option("--peft-config", help="PEFT's adapter_config.json, as it is.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override, as in space.rank=16."),
]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where run folders are kept.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Train over weights that another contract made.")
]
Continue = Annotated[
    bool,
    typer.Option("--continue", help="Go on though a required check can no longer pass."),
]
RunFolderArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, or its name below --runs.")
]


def open_run(contract: Path, overrides: list[str] | None, runs: Path, fresh: bool = False) -> Run:
    """Read a contract and open its run."""
    from tunemath.contract import FineTune
    from tunemath.pipeline import Run

    return Run(FineTune.load(contract, overrides or ()), runs, fresh=fresh)


def find_run(name: str, runs: Path) -> Run:
    """Open a run by its folder or its name, from the contract saved in it."""
    from tunemath.contract import FineTune
    from tunemath.errors import RunError
    from tunemath.pipeline import Run

    for folder in (Path(name), runs / name):
        if (folder / "contract.yaml").is_file():
            contract, place = FineTune.load(folder / "contract.yaml"), folder.resolve()
            # A folder that was renamed or copied is the run that was asked for, under its new name.
            return Run(contract.model_copy(update={"name": place.name}), place.parent)
    known = sorted(path.parent.name for path in runs.glob("*/contract.yaml"))
    raise RunError(
        f"no run at {name} or {runs / name}; "
        + (f"runs there: {', '.join(known)}" if known else "`tunemath run CONTRACT` makes one")
    )


class StageProgress:
    """One bar for the work at hand, one line for each finished stage, on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = Console(stderr=True)
        self.bars = Progress(
            TextColumn("  {task.description:<24}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.tasks: dict[str, Any] = {}
        self.stage: str | None = None
        self.clock = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Move the bar of ``what``."""
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=total)
        self.bars.update(self.tasks[what], completed=done, total=total)

    def started(self, stage: str, skipped: bool) -> None:
        """Close the stage before, and open this one."""
        import time

        self._close()
        if skipped:
            self.console.print(f"[dim]· {stage:<10} done before[/dim]")
        else:
            self.stage, self.clock = stage, time.perf_counter()
            self.tasks[stage] = self.bars.add_task(stage, total=None)

    def _close(self) -> None:
        import time

        if self.stage is not None:
            seconds = time.perf_counter() - self.clock
            self.console.print(f"[green]✓[/green] {self.stage:<10} {seconds:6.1f} s")
        for task in self.tasks.values():
            self.bars.remove_task(task)
        self.tasks, self.stage = {}, None

    @contextmanager
    def shown(self) -> Iterator[StageProgress]:
        """Show the bars inside; the last stage is closed only when nothing went wrong."""
        with self.bars:
            yield self
            self._close()
