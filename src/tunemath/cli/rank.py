"""`tunemath rank`: which rank an update needed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tunemath.cli.options import AsJson, Runs, StageProgress, find_run
from tunemath.cli.output import print_json, say, show
from tunemath.shown import clean

__all__ = ["register"]

_RUNS = Path("runs")
_DIGITS = 9


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("rank")(_rank)


def _rank(
    name: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run's folder or name; with TUNED, a base model."),
    ],
    tuned: Annotated[
        Path | None,
        typer.Argument(metavar="TUNED", help="A tuned model's folder, or a PEFT adapter's."),
    ] = None,
    runs: Runs = _RUNS,
    ranks: Annotated[
        str | None, typer.Option(metavar="LIST", help="Ranks to measure, as in 1,2,4,8.")
    ] = None,
    items: Annotated[
        int, typer.Option(min=2, max=1_000_000, help="Items of each set at most, spread evenly.")
    ] = 100,
    contract: Annotated[
        Path | None, typer.Option(help="With TUNED: the contract whose items are asked.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="With TUNED: items as JSONL, a prompt and an answer each.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="With TUNED: where to write; rank-NAME if not given.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Score the blocks at every rank, not KL alone.")
    ] = False,
    kl_only: Annotated[
        bool, typer.Option("--kl-only", help="Measure KL alone: nothing is answered.")
    ] = False,
    margin: Annotated[float, typer.Option(help="What may be lost of the score.")] = 0.05,
    share: Annotated[float, typer.Option(help="What may be lost of KL(tuned ‖ base).")] = 0.05,
    as_json: AsJson = False,
) -> None:
    """Show which rank an update needed: KL and score when it is cut at each rank.

    The update is cut to its first singular directions, in the whole model and in each type of
    block. Without --contract or --data, a TUNED model is measured by KL alone, on built-in prompts.

    Example: `tunemath rank dates-sft --ranks 1,2,4`
    """
    from tunemath.pipeline.ranking import RankOptions
    from tunemath.pipeline.subjects import rank_models, rank_run

    options = RankOptions(_numbers(ranks), full, kl_only, margin, share)
    run = None
    if tuned is None:
        _refuse_without_tuned({"--contract": contract, "--data": data, "--out": out})
        run = find_run(name, runs)
        folder = run.folder.path / "rank"
    else:
        folder = out or Path(f"rank-{tuned.resolve().name}")
    with StageProgress().shown() as progress:
        tell = partial(_tell, progress)
        if run is not None:
            product = rank_run(run, options, items, progress, tell)
        else:
            assert tuned is not None
            product = rank_models(
                name, tuned, contract, data, folder, options, items, progress, tell
            )
    if as_json:
        print_json(product)
        return
    from tunemath.report import rank_view

    show(rank_view(product))
    say(f"\n{folder / 'rank.html'}")


def _tell(progress: StageProgress, text: str) -> None:
    """Print a line above the bar."""
    progress.console.print(clean(text), markup=False, highlight=False)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    """Read a list such as 1,2,4."""
    from tunemath.errors import ContractError

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ContractError(f"--ranks is {text!r:.80}; give whole numbers, as in 1,2,4,8")
    if any(len(part) > _DIGITS for part in parts):
        raise ContractError(f"--ranks has a number of more than {_DIGITS} digits; no rank has")
    return tuple(int(part) for part in parts)


def _refuse_without_tuned(options: dict[str, Path | None]) -> None:
    """Refuse what a run has of its own."""
    from tunemath.errors import ContractError

    for option, value in options.items():
        if value is not None:
            raise ContractError(
                f"{option} goes with BASE and TUNED; a run has its own items and folder"
            )
