"""The stages that need no model: mask, check, report."""

from __future__ import annotations

from typing import Any

from tunemath.checks import Checklist
from tunemath.evaluation import build_scorecard
from tunemath.mask import certify
from tunemath.pipeline.run import Run
from tunemath.storage import read_jsonl, write_text

__all__ = ["check", "mask", "report"]


def mask(run: Run) -> list[str]:
    """Certify, over every training row, that answers and their terminators alone are trained on."""
    rows = run.rows
    product = certify(
        rows.examples,
        rows.encoded,
        run.template,
        run.tokenizer,
        data=run.contract.mask.train,
        answers=run.contract.mask.answers,
        pairs=rows.pairs,
        dropped=rows.dropped,
        task=run.items["task"],
        retention=run.items.get("retention", ()),
    )
    return [run.folder.write("mask.json", product)]


def check(run: Run) -> list[str]:
    """Score the arms against each other, then judge every check on the evidence."""
    evidence = run.evidence()
    weights = run.contract.evaluation.weights
    scorecard = build_scorecard(
        {arm: _items(run, evidence, arm) for arm in ("base", "prompted", "tuned")},
        (weights.task, weights.retention),
        run.contract.evaluation.retention_margin,
        evidence["movement"],
    )
    written = run.folder.write("scorecard.json", scorecard)
    checklist = Checklist().product({**evidence, "scorecard": scorecard})
    return [written, run.folder.write("checklist.json", checklist)]


def report(run: Run) -> list[str]:
    """Write the HTML report and the model card."""
    from tunemath.report import html_report, model_card

    evidence = run.evidence()
    folder = run.folder.path
    write_text(folder / "report.html", html_report(evidence, folder, run.model.folder))
    write_text(run.update / "README.md", model_card(evidence))
    return ["report.html", f"{run.update.name}/README.md"]


def _items(run: Run, evidence: dict[str, Any], arm: str) -> dict[str, list[dict[str, Any]] | None]:
    """Return an arm's per-item results by set, in the items' order."""
    holder = evidence["evaluation" if arm == "tuned" else "baselines"]["arms"][arm]
    return {
        name: read_jsonl(run.folder.path / holder[name]["file"]) if holder.get(name) else None
        for name in ("task", "retention")
    }
