"""The verdict, scores, findings, times and hashes of a run, as rows of words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunemath.report.facts import CHOICES, Row
from tunemath.report.text import (
    MISSING,
    clean,
    count,
    dig,
    duration,
    number,
    p_value,
    percent,
    percent_interval,
    points,
    points_interval,
)

__all__ = [
    "ARMS",
    "STAGES",
    "Difference",
    "FindingFacts",
    "Headline",
    "Score",
    "ScoreRow",
    "StageTime",
    "differences",
    "findings",
    "headline",
    "remarks",
    "scores",
    "stage_times",
    "timing_sentence",
    "winning_sentence",
]

ARMS = ("base", "prompted", "tuned")
STAGES = (
    "plan",
    "mask",
    "baselines",
    "train",
    "artefact",
    "evaluate",
    "movement",
    "spectrum",
    "check",
    "report",
)
_PRODUCTS = {
    "plan": "plan",
    "mask": "mask",
    "baselines": "baselines",
    "training": "train",
    "artefact": "artefact",
    "evaluation": "evaluate",
    "movement": "movement",
    "spectrum": "spectrum",
    "checklist": "check",
}
_STATUS = {
    "PASS": ("pass", "✓", "Pass"),
    "FAIL": ("fail", "✗", "Fail"),
    "ERROR": ("fail", "!", "Error"),
    "INSUFFICIENT_EVIDENCE": ("unsure", "?", "Insufficient evidence"),
    "NOT_RUN": ("unsure", "–", "Not run"),
}
_EXIT = {
    0: "every required check passed",
    1: "a required check failed, or could not run to an answer",
    3: "a required check did not have enough evidence",
}


@dataclass(frozen=True)
class Headline:
    """The verdict in a word, its tone, the sentence, and what the exit code means."""

    word: str
    tone: str
    sentence: str
    exit_code: int | None
    meaning: str


@dataclass(frozen=True)
class FindingFacts:
    """One finding in words, with an anchor for links."""

    anchor: str
    check: str
    choice: str
    choice_title: str
    stage: str
    tone: str
    mark: str
    word: str
    claim: str
    measured: str
    threshold: str
    where: str
    action: str
    required: bool
    covers: list[str]


@dataclass(frozen=True)
class Score:
    """One arm's score on one set of items."""

    score: str
    interval: str
    detail: str


@dataclass(frozen=True)
class ScoreRow:
    """One arm: base, prompted or tuned."""

    arm: str
    label: str
    task: Score
    retention: Score
    weighted: str


@dataclass(frozen=True)
class Difference:
    """A paired difference of two arms on one set of items."""

    set: str
    pair: str
    difference: str
    interval: str
    p: str
    items: str


@dataclass(frozen=True)
class StageTime:
    """Seconds planned and measured for one stage."""

    stage: str
    planned: float | None
    measured: float | None


def headline(evidence: Mapping[str, Any]) -> Headline:
    """Return the verdict; without a checklist, which stages are missing."""
    verdict = dig(evidence, "checklist", "verdict")
    sentence = dig(evidence, "scorecard", "sentence")
    if verdict is None:
        missing = [s for p, s in _PRODUCTS.items() if dig(evidence, p) is None]
        absent = "The run has no checklist yet"
        text = f"{absent}. Stages without a product: {', '.join(missing)}." if missing else absent
        return Headline("No verdict yet", "unsure", sentence or text, None, "not decided")
    word, tone = {
        "PASS": ("Passed", "pass"),
        "FAIL": ("Failed", "fail"),
        "INSUFFICIENT_EVIDENCE": ("Not enough evidence", "unsure"),
    }.get(str(verdict), (clean(verdict), "unsure"))
    code = dig(evidence, "checklist", "exit_code")
    if sentence is None:
        sentence = "There is no scorecard, so nothing is known about what the run gained or lost."
    return Headline(word, tone, clean(sentence), code, _EXIT.get(code, "no meaning defined"))


def findings(evidence: Mapping[str, Any]) -> list[FindingFacts]:
    """Return every finding in the checklist's order."""
    found = dig(evidence, "checklist", "findings") or []
    return [_finding(i, finding) for i, finding in enumerate(found, start=1)]


def _finding(position: int, finding: Mapping[str, Any]) -> FindingFacts:
    status = str(finding.get("status"))
    tone, mark, word = _STATUS.get(status, ("unsure", "?", clean(status)))
    text = {
        key: clean(finding.get(key) or "")
        for key in ("check", "choice", "stage", "claim", "measured", "threshold", "where", "action")
    }
    slug = re.sub(r"[^a-z0-9]+", "-", text["check"].lower()).strip("-")
    return FindingFacts(
        anchor=f"finding-{position}-{slug}",
        choice_title=CHOICES.get(text["choice"], (text["choice"], ""))[0],
        tone=tone,
        mark=mark,
        word=word,
        required=bool(finding.get("required", True)),
        covers=[clean(failure) for failure in finding.get("covers") or ()],
        **text,
    )


def scores(evidence: Mapping[str, Any]) -> list[ScoreRow]:
    """Return a row an arm; without a scorecard, raw scores of the arms that were evaluated."""
    weighted = dig(evidence, "scorecard", "weighted") or {}
    return [
        ScoreRow(
            arm=arm,
            label=_label(evidence, arm),
            task=_score(evidence, arm, "task"),
            retention=_score(evidence, arm, "retention"),
            weighted=percent(weighted.get(arm)),
        )
        for arm in ARMS
    ]


def _label(evidence: Mapping[str, Any], arm: str) -> str:
    if arm != "prompted":
        return arm.capitalize()
    shots = dig(evidence, "baselines", "few_shot")
    return "Base, prompted" if shots is None else f"Base, {shots} examples in the prompt"


def _score(evidence: Mapping[str, Any], arm: str, name: str) -> Score:
    product = "evaluation" if arm == "tuned" else "baselines"
    raw = dig(evidence, product, "arms", arm, name) or {}
    card = dig(evidence, "scorecard", "arms", arm, name) or raw
    if number(card.get("score")) is None:
        return Score(MISSING, "", "")
    detail = f"{count(card.get('correct'))} of {count(card.get('items'))}"
    if raw.get("unfinished"):
        detail += f", {count(raw['unfinished'])} unfinished"
    ends = percent_interval(card.get("low"), card.get("high"))
    return Score(percent(card["score"]), ends, detail)


def differences(evidence: Mapping[str, Any]) -> list[Difference]:
    """Return the paired differences, task first."""
    rows = []
    for name in ("task", "retention"):
        for pair, d in (dig(evidence, "scorecard", "differences", name) or {}).items():
            items = f"{count(d.get('wins'))} gained, {count(d.get('losses'))} lost"
            ends = points_interval(d.get("low"), d.get("high"))
            words = clean(pair).replace(" - ", " − ")
            p = p_value(d.get("p"))
            rows.append(Difference(name, words, points(d.get("difference")), ends, p, items))
    return rows


def winning_sentence(evidence: Mapping[str, Any]) -> str:
    """Return at which weights of the task the tuned model has the highest weighted score."""
    if dig(evidence, "scorecard", "weighted") is None:
        return f"Weighted score: {MISSING}; it needs both task and retention."
    span = dig(evidence, "scorecard", "winning_range")
    if not span:
        return "At no weight of the task does the tuned model have the highest weighted score."
    low, high = span["low"], span["high"]
    if low <= 0 and high >= 1:
        return "The tuned model has the highest weighted score at every weight."
    return (
        "The tuned model has the highest weighted score when the task weighs between "
        f"{100 * low:.3g} % and {100 * high:.3g} %."
    )


def stage_times(evidence: Mapping[str, Any]) -> list[StageTime]:
    """Return seconds planned and measured by stage; what is absent is None."""
    rows = []
    for stage in STAGES:
        measured = number(dig(evidence, "manifest", "stages", stage, "seconds"))
        if measured is None and stage == "train":
            measured = number(dig(evidence, "training", "seconds"))
        rows.append(StageTime(stage, number(dig(evidence, "plan", "seconds", stage)), measured))
    return rows


def timing_sentence(evidence: Mapping[str, Any]) -> str:
    """Return how far the plan's total is from what the measured stages took."""
    resumed = dig(evidence, "training", "resumed_at") or []
    both = [
        t
        for t in stage_times(evidence)
        if t.planned is not None and t.measured is not None and not (resumed and t.stage == "train")
    ]
    planned = sum(t.planned or 0 for t in both)
    measured = sum(t.measured or 0 for t in both)
    if not planned or not measured:
        return f"Planned and measured time cannot be compared: {MISSING}."
    off = measured / planned - 1
    word = "more" if off >= 0 else "less"
    apart = (
        f" Training went on from step {count(resumed[-1])} after it was interrupted: its seconds "
        "are those of the last process alone, and left out here."
        if resumed
        else ""
    )
    return (
        f"The stages that have both figures took {duration(measured)}, "
        f"{percent(abs(off))} {word} than the {duration(planned)} planned.{apart}"
    )


def remarks(evidence: Mapping[str, Any]) -> list[Row]:
    """Return what a reader must know about the base model and the machine."""
    rows: list[Row] = []
    if dig(evidence, "contract", "model", "trust_remote_code"):
        rows.append(("Remote code", "this run executed code that came with the model"))
    note = dig(evidence, "plan", "model", "note")
    if note:
        rows.append(("Base model", clean(note)))
    steps, planned = dig(evidence, "training", "steps"), dig(evidence, "training", "steps_planned")
    if steps is not None and planned is not None and steps < planned:
        text = f"training stopped after {count(steps)} of {count(planned)} steps"
        rows.append(("Stopped early", text))
    if dig(evidence, "contract") and dig(evidence, "contract", "evaluation", "retention") is None:
        rows.append(("Retention", f"{MISSING}: the contract names no retention items"))
    return rows
