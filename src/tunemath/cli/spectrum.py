"""`tunemath spectrum`: in which directions an update moved the model, and how many it used."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from tunemath.cli.options import (
    AsJson,
    Continue,
    Fresh,
    Overrides,
    Runs,
    StageProgress,
    find_run,
    open_run,
)
from tunemath.cli.output import print_json, say, show
from tunemath.cli.stages import run_stage

__all__ = ["register"]

_CONTRACT = "finetune.yaml"
_RUNS = Path("runs")
_TOP = 10


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("spectrum")(_spectrum)


def _spectrum(
    what: Annotated[
        str,
        typer.Argument(
            metavar="CONTRACT|RUN|ADAPTER|BASE",
            help="A contract, a finished run, a PEFT adapter; with TUNED, a base model.",
        ),
    ] = _CONTRACT,
    tuned: Annotated[
        Path | None,
        typer.Argument(metavar="TUNED", help="A tuned model's folder, or an adapter's."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="With an adapter: the model that it was trained on.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Another adapter or run of the same base, to compare with.")
    ] = None,
    top: Annotated[
        int,
        typer.Option(
            min=1, max=1_000_000, help="How many of the weights that moved most are shown."
        ),
    ] = _TOP,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with figures: HTML.")
    ] = None,
    overrides: Overrides = None,
    runs: Runs = _RUNS,
    fresh: Fresh = False,
    go_on: Continue = False,
    as_json: AsJson = False,
) -> None:
    """Show in which directions an update moved each weight, and how many it used.

    From a LoRA-family adapter's factors exactly; between two models tensor by tensor. Beside each
    weight's singular values: effective and stable rank, the error at each rank, intruder
    dimensions, and the angles to the base's directions and another adapter's. With a CONTRACT it
    is the run's stage, which writes spectrum.json.

    Example: `tunemath spectrum dates-sft --report spectrum.html`

    `tunemath spectrum path/to/adapter --base path/to/model --against path/to/other`

    `tunemath spectrum path/to/base path/to/tuned --json`
    """
    if tuned is None and what.endswith((".yaml", ".yml")):
        given = {"--base": base, "--against": against, "--report": report}
        _refuse(given, "has no meaning with a contract")
        run = open_run(Path(what), overrides, runs, fresh)
        run_stage("spectrum", "spectrum", run, go_on, as_json)
        return
    _refuse(
        {"--set": overrides, "--fresh": fresh or None, "--continue": go_on or None},
        "goes with a contract only",
    )
    if tuned is not None or not _is_adapter(what):
        _refuse({"--base": base}, "goes with one adapter only; BASE and TUNED are given in order")
    with StageProgress().shown() as progress:
        other = None if against is None else _adapter(against, runs)
        found = _found(what, tuned, base, other, runs, progress)
    if as_json:
        print_json(found)
    else:
        from tunemath.report import spectra_view

        show(spectra_view(found, top))
    if report is not None:
        from tunemath.report import spectra_page
        from tunemath.storage import write_text

        write_text(report, spectra_page(found, top))
        say(f"wrote {report}", err=True)


def _found(
    what: str,
    tuned: Path | None,
    base: str | None,
    against: Path | None,
    runs: Path,
    progress: StageProgress,
) -> dict[str, Any]:
    """Return the spectra of whatever was named."""
    from tunemath.pipeline.spectra import spectrum_of, spectrum_of_run
    from tunemath.space.weights.spectra import SpectrumSettings

    settings, tick = SpectrumSettings(), partial(progress, "weights")
    if tuned is not None:
        return spectrum_of(what, tuned, settings, against, tick)
    if not _is_adapter(what):
        return spectrum_of_run(find_run(what, runs), settings, against, tick)
    return spectrum_of(base, Path(what), settings, against, tick)


def _is_adapter(name: str) -> bool:
    return (Path(name) / "adapter_config.json").is_file()


def _adapter(name: str, runs: Path) -> Path:
    """Return an adapter's folder, given it or its run."""
    return Path(name) if _is_adapter(name) else find_run(name, runs).update


def _refuse(options: dict[str, Any], why: str) -> None:
    from tunemath.errors import ContractError

    for option, value in options.items():
        if value is not None:
            raise ContractError(f"{option} {why}; leave it out")
