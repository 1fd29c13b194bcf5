"""The report as one HTML file: no request leaves it, and nothing in it is trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunemath.report.code import example_code
from tunemath.report.facts import ChoiceFacts, Row, choice_facts, movement_text, target_shape
from tunemath.report.figures import Figure, figures
from tunemath.report.results import (
    ARMS,
    FindingFacts,
    differences,
    findings,
    headline,
    remarks,
    scores,
    stage_times,
    timing_sentence,
    winning_sentence,
)
from tunemath.report.text import (
    MISSING,
    clean,
    clip,
    count,
    decimal,
    device_text,
    dig,
    duration,
    number,
    percent,
    points,
    size,
)

__all__ = ["html_report"]

_FIGURES = {
    "space": ("energy", "layers"),
    "objective": ("loss",),
    "mask": (),
    "budget": (),
    "evaluation": ("scores", "position"),
}
_ANSWER = 400


@dataclass(frozen=True)
class _Table:
    """A table of words: heads, rows whose first cell is a head, and which columns are numbers."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def html_report(
    evidence: Mapping[str, Any], run_dir: str | Path | None = None, base: str | Path | None = None
) -> str:
    """Return the whole report as one HTML document that makes no request.

    Args:
        evidence: the products of a run by name; what is absent is said to be not measured.
        run_dir: the run's folder, for the code that loads the adapter; ``runs/NAME`` otherwise.
        base: the base model's folder or hub id, for the same; the contract's id otherwise.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("tunemath.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = {name: (figure, Markup(figure.svg)) for name, figure in figures(evidence).items()}
    page = environment.get_template("report.html.j2")
    text = page.render(**_view(evidence, drawn), code=example_code(evidence, run_dir, base))
    return text.encode("utf-8", "replace").decode("utf-8")


def _view(evidence: Mapping[str, Any], drawn: Mapping[str, tuple[Figure, str]]) -> dict[str, Any]:
    """Return all that the template shows; it has no logic of its own but loops."""
    found = findings(evidence)
    return {
        "missing": MISSING,
        "name": clean(dig(evidence, "contract", "name") or "unnamed run"),
        "subtitle": _subtitle(evidence),
        "headline": headline(evidence),
        "problems": [f for f in found if f.required and f.tone != "pass"],
        "keys": _key_figures(evidence),
        "remarks": remarks(evidence),
        "scores": scores(evidence),
        "metrics": {name: _metric(evidence, name) for name in ("task", "retention")},
        "differences": differences(evidence),
        "winning": winning_sentence(evidence),
        "movement": {name: movement_text(evidence, name) for name in ("task", "retention")},
        "forest": drawn.get("differences"),
        "choices": [_choice(evidence, facts, found, drawn) for facts in choice_facts(evidence)],
        "samples": [_sample(sample) for sample in dig(evidence, "mask", "samples") or []],
        "answers": [_answer(row) for row in dig(evidence, "evaluation", "before_after") or []],
        "findings": found,
        "tally": _tally(found),
        "times": _times(evidence),
        "timing": timing_sentence(evidence),
        "version": clean(dig(evidence, "manifest", "tunemath") or ""),
        "hashes": _hashes(evidence),
    }


def _subtitle(evidence: Mapping[str, Any]) -> str:
    parts = [
        str(dig(evidence, "contract", "objective", "kind") or "").upper(),
        clean(dig(evidence, "contract", "model", "id") or ""),
        clean(dig(evidence, "plan", "model", "architecture") or ""),
        device_text(dig(evidence, "training") or {}),
    ]
    return " · ".join(part for part in parts if part)


def _key_figures(evidence: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the four figures under the verdict: a number, its name, and what to hold it to."""
    differ = dig(evidence, "scorecard", "differences") or {}
    rows = {row.arm: row for row in scores(evidence)}
    moved = dig(evidence, "movement", "task", "kl")
    share = dig(evidence, "plan", "parameters", "percent")
    trainable = dig(evidence, "plan", "parameters", "trainable")

    def beside(name: str) -> str:
        base = getattr(rows["base"], name).score
        gain = dig(differ, name, "tuned - base", "difference")
        return f"base {base}" + ("" if number(gain) is None else f"; {points(gain)}")

    return [
        (rows["tuned"].task.score, "task, tuned", beside("task")),
        (rows["tuned"].retention.score, "retention, tuned", beside("retention")),
        (
            MISSING if number(moved) is None else f"{decimal(moved)} nats",
            "moved from the base",
            "KL(tuned ‖ base) per answer token of the task",
        ),
        (
            MISSING if number(share) is None else percent(share / 100, 2),
            "of parameters trained",
            f"{count(trainable)} parameters",
        ),
    ]


def _metric(evidence: Mapping[str, Any], name: str) -> str:
    for arm in ARMS:
        for product in ("baselines", "evaluation"):
            metric = dig(evidence, product, "arms", arm, name, "metric")
            if metric:
                return clean(metric)
    return MISSING


def _choice(
    evidence: Mapping[str, Any],
    facts: ChoiceFacts,
    found: Sequence[FindingFacts],
    drawn: Mapping[str, tuple[Figure, str]],
) -> dict[str, Any]:
    tables = {"space": _targets, "budget": _memory}
    return {
        "facts": facts,
        "table": tables[facts.key](evidence) if facts.key in tables else None,
        "findings": [f for f in found if f.choice == facts.key],
        "figures": [drawn[name] for name in _FIGURES[facts.key] if name in drawn],
        "absent": [name for name in _FIGURES[facts.key] if name not in drawn],
    }


def _targets(evidence: Mapping[str, Any]) -> _Table | None:
    measured = {
        row.get("target"): row for row in dig(evidence, "spectrum", "summary", "by_target") or []
    }
    rows = []
    for target in dig(evidence, "plan", "parameters", "by_target") or []:
        spectrum = measured.get(target.get("name")) or {}
        norm = spectrum.get("relative_norm")
        rows.append(
            (
                clean(target.get("name")),
                count(target.get("modules")),
                target_shape(target),
                count(target.get("parameters")),
                decimal(spectrum.get("median_effective_rank"), 2),
                percent(norm, 2),
            )
        )
    heads = (
        "Target",
        "Modules",
        "In → out",
        "Trainable parameters",
        "Effective rank, median",
        "‖ΔW‖ / ‖W‖",
    )
    return _Table("Trainable parameters and the update that was learnt, by target", heads, rows)


def _memory(evidence: Mapping[str, Any]) -> _Table | None:
    terms = dig(evidence, "plan", "memory", "terms") or []
    rows = [
        (clean(t.get("name")), size(t.get("bytes")), size(t.get("at_peak")),
         "exact" if t.get("exact") else "estimate")
        for t in terms
    ]  # fmt: skip
    if rows:
        total = size(dig(evidence, "plan", "memory", "total_bytes"))
        rows.append(("Peak", "", total, "estimate"))
    heads = ("Term", "Size", "At the peak", "Kind")
    return _Table("Memory of training, predicted", heads, rows)


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the mask as runs of tokens: trained on, or not."""
    runs: list[dict[str, Any]] = []
    for token in sample.get("tokens") or []:
        supervised = bool(token.get("supervised"))
        text = clean(token.get("text", ""))
        shown = {
            "text": text.rstrip("\n").replace("\n", "↵\n").replace("\t", "⇥\t"),
            "ends": text[len(text.rstrip("\n")) :].count("\n"),
            "special": bool(token.get("special")),
        }
        if not runs or runs[-1]["supervised"] != supervised:
            runs.append({"supervised": supervised, "tokens": []})
        runs[-1]["tokens"].append(shown)
    total = sum(len(run["tokens"]) for run in runs)
    kept = sum(len(run["tokens"]) for run in runs if run["supervised"])
    return {"id": clean(sample.get("id", "")), "runs": runs, "tokens": total, "supervised": kept}


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    reference = str(row.get("reference", "")).strip()
    answers = [("reference", clip(row.get("reference", ""), _ANSWER), False)]
    for arm in ("base", "tuned"):
        text = str(row.get(arm, ""))
        answers.append((arm, clip(text, _ANSWER), text.strip() == reference))
    return {"prompt": clip(row.get("prompt", ""), _ANSWER), "answers": answers}


def _tally(found: Sequence[FindingFacts]) -> list[Row]:
    words = dict.fromkeys(f.word for f in found)
    return [(word, count(sum(f.word == word for f in found))) for word in words]


def _times(evidence: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each stage's planned and measured time as words and as a share of the longest."""
    times = stage_times(evidence)
    longest = max([1e-9, *(t.planned or 0 for t in times), *(t.measured or 0 for t in times)])
    rows = [
        {
            "stage": t.stage,
            "planned": duration(t.planned) if t.planned is not None else "not planned",
            "measured": duration(t.measured),
            "planned_share": 100 * (t.planned or 0) / longest,
            "measured_share": 100 * (t.measured or 0) / longest,
        }
        for t in times
    ]
    measured = [t.measured for t in times if t.measured is not None]
    total = {
        "stage": "total",
        "planned": duration(dig(evidence, "plan", "seconds", "total")),
        "measured": duration(sum(measured)) if measured else MISSING,
        "planned_share": None,
        "measured_share": None,
    }
    return [*rows, total]


def _hashes(evidence: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return stage, role, name and SHA-256 of all that the manifest and the mask bind."""
    rows: list[tuple[str, str, str, str]] = []
    for stage, entry in (dig(evidence, "manifest", "stages") or {}).items():
        rows.append((clean(stage), "key", "stage", clean(entry.get("key") or MISSING)))
        for role in ("inputs", "products"):
            for name, sha in (entry.get(role) or {}).items():
                rows.append((clean(stage), role[:-1], clean(name), clean(sha)))
    for key in ("template_sha256", "tokenizer_sha256", "rows_sha256"):
        sha = dig(evidence, "mask", key)
        if sha:
            rows.append(("mask", "certificate", key.removesuffix("_sha256"), clean(sha)))
    return rows
