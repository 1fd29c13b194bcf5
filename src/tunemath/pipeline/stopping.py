"""Where a run stops before it spends anything, because its verdict can no longer be a PASS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunemath.checks import Checklist
from tunemath.errors import RunError
from tunemath.findings import Finding, Status, Verdict, verdict
from tunemath.pipeline.run import Run

__all__ = ["EARLY", "StoppedError", "early_findings", "stop_if_decided"]

EARLY = ("plan", "mask")
"""The stages that spend nothing, in order; no later one changes what they wrote."""
_DECIDED = {Status.FAIL, Status.ERROR, Status.INSUFFICIENT_EVIDENCE}


class StoppedError(RunError):
    """A run stopped after `plan` and `mask`, on required findings that no later stage can change.

    ``findings`` are these; ``verdict`` is the best that the run could still come to, ``after`` the
    stage after which it stopped. `advance` with ``go_on=True`` goes on all the same.
    """

    def __init__(self, findings: Sequence[Finding], folder: str) -> None:
        self.findings = tuple(findings)
        self.verdict: Verdict = verdict(findings)
        self.after = EARLY[-1]
        self.folder = folder
        said = "; ".join(f"{f.check}: {f.measured} ({f.action})" for f in findings)
        super().__init__(
            f"{folder} stopped before anything was spent: {said}; go_on=True (--continue) goes on"
        )


def early_findings(evidence: Mapping[str, Any]) -> list[Finding]:
    """Return what the checks say that need no more than the contract and the early products."""
    known = {name: evidence[name] for name in ("contract", *EARLY) if evidence.get(name)}
    return [check.run(known) for check in Checklist().items if set(check.needs) <= known.keys()]


def stop_if_decided(run: Run) -> None:
    """Raise `StoppedError` where a required check already can't pass; the checklist says so."""
    evidence = {"contract": run.contract.resolved()}
    evidence |= {name: run.folder.read(f"{name}.json") for name in EARLY}
    decided = [f for f in early_findings(evidence) if f.required and f.status in _DECIDED]
    if decided:
        run.folder.write("checklist.json", Checklist().product(evidence))
        raise StoppedError(decided, str(run.folder.path))
