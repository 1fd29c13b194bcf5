"""`tunemath run`, and each of its stages as a command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tunemath.cli.options import (
    AsJson,
    Continue,
    ContractPath,
    Fresh,
    Overrides,
    Runs,
    StageProgress,
    open_run,
)
from tunemath.cli.output import print_json, say, show

if TYPE_CHECKING:
    from tunemath.pipeline import Run, StoppedError

__all__ = ["register", "run_stage"]

_CONTRACT = Path("finetune.yaml")
_RUNS = Path("runs")
_EARLY = ("plan", "mask")

_STAGES = {
    "plan": ("plan", "What the five choices imply: parameters, memory, FLOPs, steps, seconds."),
    "mask": ("mask", "Which tokens are trained on: a certificate over every row, rows in colour."),
    "baselines": ("baselines", "Evaluate the base, and the base with examples in its prompt."),
    "train": ("training", "Train the adapter, and keep the evidence that it was done as written."),
    "artefact": ("artefact", "Prove that adapter, merged and reloaded model are the trained one."),
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
    go_on: Continue = False,
    as_json: AsJson = False,
) -> None:
    run = open_run(contract, overrides, runs, fresh)
    evidence = _advance(run, "report", go_on, as_json)
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
    def early(
        contract: ContractPath = _CONTRACT,
        overrides: Overrides = None,
        runs: Runs = _RUNS,
        fresh: Fresh = False,
        as_json: AsJson = False,
    ) -> None:
        _plan_only(stage, open_run(contract, overrides, runs, fresh), as_json)

    def command(
        contract: ContractPath = _CONTRACT,
        overrides: Overrides = None,
        runs: Runs = _RUNS,
        fresh: Fresh = False,
        go_on: Continue = False,
        as_json: AsJson = False,
    ) -> None:
        run_stage(stage, product, open_run(contract, overrides, runs, fresh), go_on, as_json)

    return early if stage in _EARLY else command


def _plan_only(stage: str, run: Run, as_json: bool) -> None:
    """Print a product that needs no model, and what it already says of the verdict."""
    from tunemath.pipeline import advance, early_findings
    from tunemath.report import unpassed_view

    evidence = advance(run, stage)
    if as_json:
        print_json(evidence[stage])
    else:
        known = {name: evidence[name] for name in ("contract", stage)}
        show(_view(stage, evidence))
        show(unpassed_view([asdict(finding) for finding in early_findings(known)]))
    if "what_if" in evidence:
        say(f"what if: nothing was saved, as {evidence['what_if']}", err=True)
    raise typer.Exit(_exit_code(stage, evidence))


def run_stage(stage: str, product: str, run: Run, go_on: bool, as_json: bool) -> None:
    """Bring a run up to a stage, print the stage's product, and exit with its code."""
    evidence = _advance(run, stage, go_on, as_json)
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
    go_on: Continue = False,
    as_json: AsJson = False,
) -> None:
    run = open_run(contract, overrides, runs, fresh)
    evidence = _advance(run, "report", go_on, as_json)
    paths = {
        "report": str(run.folder.path / "report.html"),
        "model_card": str(run.update / "README.md"),
    }
    if as_json:
        print_json(paths)
    else:
        say("\n".join(paths.values()))
    raise typer.Exit(evidence["checklist"]["exit_code"])


def _advance(run: Run, stage: str, go_on: bool, as_json: bool) -> dict[str, Any]:
    """Bring a run up to a stage; where it stops before it spends, say why and exit."""
    from tunemath.pipeline import StoppedError, advance

    try:
        with StageProgress().shown() as progress:
            run.progress = progress
            return advance(run, stage, progress.started, go_on)
    except StoppedError as stop:
        _say_stopped(stop, as_json)
        raise typer.Exit(stop.verdict.exit_code) from None


def _say_stopped(stop: StoppedError, as_json: bool) -> None:
    findings = [asdict(finding) for finding in stop.findings]
    if as_json:
        print_json(
            {
                "run": stop.folder,
                "verdict": stop.verdict.value,
                "exit_code": stop.verdict.exit_code,
                "stopped_after": stop.after,
                "findings": findings,
            }
        )
        return
    from tunemath.report import stopped_view

    show(stopped_view(findings, stop.verdict.value, stop.after))


def _exit_code(stage: str, evidence: dict[str, Any]) -> int:
    if stage == "check":
        return evidence["checklist"]["exit_code"]
    if stage == "mask":
        from tunemath.mask import MASK_VIOLATIONS

        return int(any(evidence["mask"]["violations"][kind] for kind in MASK_VIOLATIONS))
    if stage == "artefact":
        from tunemath.pipeline.products import faults

        return int(faults(evidence["artefact"]))
    return 0


def _view(stage: str, evidence: dict[str, Any]) -> Any:
    from tunemath import report

    if stage in {"baselines", "evaluate"}:
        return report.arms_view(evidence)
    if stage == "train":
        return report.training_view(evidence["training"])
    name = "checklist" if stage == "check" else stage
    return getattr(report, f"{name}_view")(evidence[name])
