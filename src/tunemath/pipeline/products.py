"""Models made of a base and an update, and what is found when they are held against both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunemath.contract import ModelChoice
from tunemath.findings import Status, Verdict
from tunemath.runner.progress import Progress, silent
from tunemath.runner.resolve import CONFIGS, ResolvedModel, resolve_model, weights_hash
from tunemath.space.checks import CHECKS

if TYPE_CHECKING:
    from tunemath.runner.merging import MergeOptions
    from tunemath.runner.trainer import Row

__all__ = ["base_at", "faults", "merge_into", "unmerge_from", "verify"]


def base_at(name: str) -> ResolvedModel:
    """Return a base model by its folder, its id on the hub, or the embedded model's name."""
    return resolve_model(ModelChoice.named(name))


def merge_into(
    base: ResolvedModel,
    adapter: Path,
    out: Path,
    options: MergeOptions | None = None,
    rows: tuple[Sequence[Row], str] | None = None,
    answers: Callable[[Path], dict[str, Any]] | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Merge a saved update into its base, a tensor at a time; return the proof and its findings."""
    from tunemath.runner.merging import MergeOptions, merge_update

    _read_anew(base.folder, adapter)
    evidence = merge_update(base, adapter, out, options or MergeOptions(), rows, answers, progress)
    return {**evidence, "findings": _findings(evidence)}


def unmerge_from(
    merged: ResolvedModel,
    adapter: Path,
    out: Path,
    base: ResolvedModel | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Subtract a saved update from weights that it was merged into; return what that left."""
    from tunemath.runner.unmerging import unmerge_update

    _read_anew(merged.folder, adapter, *([base.folder] if base is not None else []))
    return unmerge_update(merged, adapter, out, base, force, progress)


def verify(
    base: ResolvedModel,
    adapter: Path,
    product: Path,
    probe: bool = True,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Judge whether a model that anybody merged is the base with the update in it, once.

    Every failed check fails it; where none did, required checks that could not be judged leave it
    without enough evidence.
    """
    from tunemath.runner.verifying import verify_product

    _read_anew(base.folder, adapter)
    evidence = verify_product(base, adapter, product, probe, progress)
    findings = _findings(evidence)
    statuses = {finding["status"] for finding in findings}
    worst = Verdict.FAIL if statuses & {Status.FAIL, Status.ERROR} else Verdict.PASS
    if worst is Verdict.PASS and any(
        finding["required"] and finding["status"] != Status.PASS for finding in findings
    ):
        worst = Verdict.INSUFFICIENT_EVIDENCE
    return {"verdict": worst.value, "exit_code": worst.exit_code, "findings": findings, **evidence}


def _read_anew(*folders: Path) -> None:
    """Hash all that a product is made of, whatever is remembered: what ships is what is there."""
    for folder in folders:
        if any((folder / name).is_file() for name in CONFIGS):  # else told by what reads it
            weights_hash(folder, anew=True)


def faults(artefact: Mapping[str, Any]) -> bool:
    """Whether any check of artefacts fails on what a run's stage found."""
    failed = {Status.FAIL, Status.ERROR}
    return any(finding["status"] in failed for finding in _findings(artefact))


def _findings(evidence: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the checks of artefacts say, those of logits only where they were compared."""
    checks = [check for check in CHECKS if check.stage == "artefact"]
    if "positions" not in evidence:
        checks = [check for check in checks if check.id != "adapter-merged-reloaded"]
    return [asdict(check.run({"artefact": evidence})) for check in checks]
