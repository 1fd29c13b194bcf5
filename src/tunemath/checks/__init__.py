"""The checklist: every room's checks in one registry, run over a run's evidence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from tunemath.budget.checks import CHECKS as _BUDGET
from tunemath.evaluation.checks import CHECKS as _EVALUATION
from tunemath.findings import Check, Evidence, Finding, Verdict, verdict
from tunemath.mask.checks import CHECKS as _MASK
from tunemath.objective.checks import CHECKS as _OBJECTIVE
from tunemath.space.checks import CHECKS as _SPACE

__all__ = ["OWED", "Checklist"]

OWED = ("answer-mask", "trainable-count", "baselines-same-items", "retention-measured")
"""The four that every fine-tune owes, in order."""


@dataclass(frozen=True)
class Checklist:
    """What is verified before a fine-tune is trusted.

    Example:
        >>> [check.id for check in Checklist().items[:4]]
        ['answer-mask', 'trainable-count', 'baselines-same-items', 'retention-measured']
    """

    @cached_property
    def items(self) -> tuple[Check, ...]:
        """Every check: the four that every fine-tune owes first, then by choice."""
        found = {c.id: c for c in (*_SPACE, *_OBJECTIVE, *_MASK, *_BUDGET, *_EVALUATION)}
        owed = tuple(found.pop(name) for name in OWED)
        return (*owed, *found.values())

    def judge(self, evidence: Evidence) -> tuple[Finding, ...]:
        """Run every check over a run's products."""
        return tuple(check.run(evidence) for check in self.items)

    def product(self, evidence: Evidence) -> dict[str, Any]:
        """Return ``checklist.json``: the verdict, its exit code, every finding."""
        findings = self.judge(evidence)
        worst: Verdict = verdict(findings)
        return {
            "verdict": worst.value,
            "exit_code": worst.exit_code,
            "findings": [asdict(finding) for finding in findings],
        }
