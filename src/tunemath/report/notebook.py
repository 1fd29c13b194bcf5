"""A run in a line, and in a small HTML card for notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunemath.report.results import (
    STAGES,
    differences,
    findings,
    headline,
    remarks,
    scores,
)
from tunemath.report.text import clean, count, dig

__all__ = ["run_card", "run_line"]


def run_line(evidence: Mapping[str, Any], folder: Path) -> str:
    """Return a run's name, folder, verdict and how far it is, in one line."""
    name = clean(dig(evidence, "contract", "name"))
    return f"{name} in {clean(folder)}: {headline(evidence).word.lower()}, {_progress(evidence)}"


def run_card(evidence: Mapping[str, Any], folder: Path) -> str:
    """Return verdict, scores, paired differences and what did not pass, as an HTML fragment.

    It is self-contained, makes no request and runs no script; every text is escaped.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tunemath.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found = findings(evidence)
    return environment.get_template("card.html.j2").render(
        name=clean(dig(evidence, "contract", "name")),
        folder=clean(folder),
        headline=headline(evidence),
        progress=_progress(evidence),
        scores=scores(evidence) if "baselines" in evidence else [],
        differences=differences(evidence),
        passed=sum(each.tone == "pass" for each in found),
        findings=found,
        others=[each for each in found if each.tone != "pass"],
        remarks=remarks(evidence) if "checklist" in evidence else [],
    )


def _progress(evidence: Mapping[str, Any]) -> str:
    stages = dig(evidence, "manifest", "stages") or {}
    done = [name for name in STAGES if name in stages]
    if len(done) == len(STAGES):
        return "all stages done"
    return f"{count(len(done))} of {count(len(STAGES))} stages done"
