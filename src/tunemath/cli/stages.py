"""`tunemath run`, and each of its stages as a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tunemath.cli.options import (
    AsJson,
    ContractPath,
    Fresh,
    Overrides,
    Runs,
    StageProgress,
    open_run,
)
from tunemath.cli.output import print_json, say, show

if TYPE_CHECKING:
    from tunemath.pipeline import Run

__all__ = ["register", "run_stage"]

_CONTRACT = Path("finetune.yaml")
_RUNS = Path("runs")

_STAGES = {
    "plan": ("plan", "What the five choices imply: parameters, memory, FLOPs, steps, seconds."),
    "mask": ("mask", "Which tokens are trained on: a certificate over every row, rows in colour."),
    "baselines": ("baselines", "Evaluate the base, and the base with examples in its prompt."),
    "train": ("training", "Train the adapter, and keep the evidence that it was done as written."),
    "evaluate": ("evaluation", "Evaluate the trained adapter on the same items."),
    "movement": ("movement", "Measure KL(tuned ‖ base) where the model answers."),
    "check": ("checklist", "Judge every check on the evidence; the exit code is the verdict."),
}


def register(app: typer.Typer) -> None:
    """Add `run`, `report` and a command for each stage."""
    app.command(
        "run",
        help=_help(
            "Plan, train, measure, judge; the exit code is the verdict.",
            "run",
            "run finetune.yaml --set space.rank=16",
        ),
    )(_run)
    for stage, (product, text) in _STAGES.items():
        app.command(stage, help=_help(text, stage, f"{stage} finetune.yaml --json"))(
            _command(stage, product)
        )
    app.command(
        "report",
        help=_help("Write report.html and the model card.", "report", "report finetune.yaml"),
    )(_report)


def _help(text: str, *examples: str) -> str:
    lines = "\n\n".join(f"`tunemath {example}`" for example in examples[1:])
    return f"{text}\n\nExample: {lines}"


def _run(
    contract: ContractPath = _CONTRACT,
    overrides: Overrides = None,
    runs: Runs = _RUNS,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    run = open_run(contract, overrides, runs, fresh)
    evidence = _advance(run, "report")
    checklist = evidence["checklist"]
    if as_json:
        print_json(
            {
                "run": str(run.folder.path),
                "verdict": checklist["verdict"],
                "exit_code": checklist["exit_code"],
                "scorecard": evidence["scorecard"],
                "findings": checklist["findings"],
                "seconds": {k: v["seconds"] for k, v in evidence["manifest"]["stages"].items()},
            }
        )
    else:
        from tunemath.report import summary_view

        folder = run.folder.path
        show(summary_view(evidence, folder, run.model.folder, folder / "report.html"))
    raise typer.Exit(checklist["exit_code"])


def _command(stage: str, product: str) -> Callable[..., None]:
    def command(
        contract: ContractPath = _CONTRACT,
        overrides: Overrides = None,
        runs: Runs = _RUNS,
        fresh: Fresh = False,
        as_json: AsJson = False,
    ) -> None:
        run_stage(stage, product, contract, overrides, runs, fresh, as_json)

    return command


def run_stage(
    stage: str,
    product: str,
    contract: Path,
    overrides: list[str] | None,
    runs: Path,
    fresh: bool,
    as_json: bool,
) -> None:
    """Run a contract up to a stage, print the stage's product, and exit with its code."""
    run = open_run(contract, overrides, runs, fresh)
    evidence = _advance(run, stage, quiet=stage in {"plan", "mask"})
    if as_json:
        print_json(evidence[product])
    else:
        show(_view(stage, evidence))
    raise typer.Exit(_exit_code(stage, evidence))


def _report(
    contract: ContractPath = _CONTRACT,
    overrides: Overrides = None,
    runs: Runs = _RUNS,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    run = open_run(contract, overrides, runs, fresh)
    evidence = _advance(run, "report")
    paths = {
        "report": str(run.folder.path / "report.html"),
        "model_card": str(run.update / "README.md"),
    }
    if as_json:
        print_json(paths)
    else:
        say("\n".join(paths.values()))
    raise typer.Exit(evidence["checklist"]["exit_code"])


def _advance(run: Run, stage: str, quiet: bool = False) -> dict[str, Any]:
    from tunemath.pipeline import advance

    if quiet:
        return advance(run, stage)
    with StageProgress().shown() as progress:
        run.progress = progress
        return advance(run, stage, progress.started)


def _exit_code(stage: str, evidence: dict[str, Any]) -> int:
    if stage == "check":
        return evidence["checklist"]["exit_code"]
    if stage == "mask":
        from tunemath.mask import MASK_VIOLATIONS

        return int(any(evidence["mask"]["violations"][kind] for kind in MASK_VIOLATIONS))
    return 0


def _view(stage: str, evidence: dict[str, Any]) -> Any:
    from tunemath import report

    if stage in {"baselines", "evaluate"}:
        return report.arms_view(evidence)
    if stage == "train":
        return report.training_view(evidence["training"])
    name = "checklist" if stage == "check" else stage
    return getattr(report, f"{name}_view")(evidence[name])
