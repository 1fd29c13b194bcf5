"""What a check is, what it returns, and how findings become a verdict.

A check reads *evidence*: a mapping from product names (``"plan"``, ``"mask"``, ``"training"`` …)
to the JSON that a stage of the run wrote. It never runs a model. A check whose evidence is
absent is ``NOT_RUN``; one that raises is ``ERROR``; neither ever counts as passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

__all__ = ["Check", "Choice", "Evidence", "Finding", "Outcome", "Status", "Verdict", "verdict"]

Evidence = Mapping[str, Any]
Choice = Literal["space", "objective", "mask", "budget", "evaluation"]
CheckStage = Literal["static", "forward", "backward", "run", "artefact", "evaluation"]


class Status(StrEnum):
    """The five things a check can say."""

    PASS = "PASS"
    FAIL = "FAIL"
    INSUFFICIENT_EVIDENCE = "INSUFFICIENT_EVIDENCE"
    NOT_RUN = "NOT_RUN"
    ERROR = "ERROR"


@dataclass(frozen=True)
class Outcome:
    """What a check measured, in words with units; the threshold; where; what to do."""

    status: Status
    measured: str
    threshold: str
    where: str = ""
    action: str = ""


@dataclass(frozen=True)
class Check:
    """One thing that can be verified about one of the five choices.

    ``claim`` is what a PASS proves, in one sentence; ``covers`` names the documented failures
    that it catches; ``needs`` the products that it reads.
    """

    id: str
    choice: Choice
    stage: CheckStage
    claim: str
    needs: tuple[str, ...]
    judge: Callable[[Evidence], Outcome]
    covers: tuple[str, ...] = ()
    required: bool = True

    def run(self, evidence: Evidence) -> Finding:
        """Judge the evidence; absent evidence is NOT_RUN, an exception is ERROR."""
        missing = [name for name in self.needs if evidence.get(name) is None]
        if missing:
            outcome = Outcome(
                Status.NOT_RUN,
                measured="nothing: no " + ", ".join(missing),
                threshold="evidence present",
                action="run the stage that writes " + ", ".join(missing),
            )
        else:
            try:
                outcome = self.judge(evidence)
            except Exception as error:
                outcome = Outcome(
                    Status.ERROR,
                    measured=f"{type(error).__name__}: {error}",
                    threshold="the check runs to an answer",
                    action="report this with the run folder's JSON files",
                )
        return Finding(
            check=self.id,
            choice=self.choice,
            stage=self.stage,
            claim=self.claim,
            required=self.required,
            covers=self.covers,
            **asdict(outcome),
        )


@dataclass(frozen=True)
class Finding:
    """A check's answer on one run."""

    check: str
    choice: str
    stage: str
    status: Status
    claim: str
    measured: str
    threshold: str
    where: str
    action: str
    required: bool
    covers: tuple[str, ...]


class Verdict(StrEnum):
    """The worst required finding, and the exit code that it means."""

    PASS = "PASS"
    FAIL = "FAIL"
    INSUFFICIENT_EVIDENCE = "INSUFFICIENT_EVIDENCE"

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed (or a check errored), 3 not enough evidence."""
        return {"PASS": 0, "FAIL": 1, "INSUFFICIENT_EVIDENCE": 3}[self.value]


def verdict(findings: Iterable[Finding]) -> Verdict:
    """Return the worst required finding.

    FAIL and ERROR fail; INSUFFICIENT_EVIDENCE and NOT_RUN, or no required finding at all, are
    not enough evidence.
    """
    statuses = {finding.status for finding in findings if finding.required}
    if statuses & {Status.FAIL, Status.ERROR}:
        return Verdict.FAIL
    if statuses == {Status.PASS}:
        return Verdict.PASS
    return Verdict.INSUFFICIENT_EVIDENCE
