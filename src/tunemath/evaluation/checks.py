"""What can be verified about the evaluation contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunemath.evaluation.decision import ALPHA, judge_gain, judge_retention, p_value
from tunemath.evaluation.sizes import (
    FEWEST_ITEMS,
    can_show_gain,
    can_show_retention,
    smallest_kept_margin,
)
from tunemath.findings import Check, Evidence, Outcome, Status

__all__ = ["CHECKS"]

_FINISHED = 0.95


def _same_items(evidence: Evidence) -> Outcome:
    arms = {**evidence["baselines"]["arms"], **evidence["evaluation"]["arms"]}
    planned = evidence["plan"]["data"]
    threshold = "base, prompted and tuned on the contract's items, one item hash for each set"
    faults, sets = [], []
    for name in ("task", "retention"):
        results = {arm: arms.get(arm, {}).get(name) for arm in ("base", "prompted", "tuned")}
        if name == "retention" and not any(results.values()):
            continue
        sets.append(name)
        absent = [arm for arm, result in results.items() if not result]
        if absent:
            faults.append(f"{name}: {', '.join(absent)} not evaluated")
            continue
        hashes = {result["items_sha256"] for result in results.values() if result}
        counts = {result["items"] for result in results.values() if result}
        if len(hashes) > 1:
            faults.append(f"{name}: {len(hashes)} different item hashes")
        if counts != {planned[f"{name}_items"]}:
            scored = " and ".join(map(str, sorted(counts)))
            faults.append(f"{name}: {scored} items scored, {planned[f'{name}_items']} planned")
    if faults:
        action = "evaluate base, prompted and tuned on the same items: run the baselines again"
        return Outcome(Status.FAIL, "; ".join(faults), threshold, "baselines.json", action)
    counted = ", ".join(f"{planned[f'{name}_items']} {name} items" for name in sets)
    return Outcome(Status.PASS, f"3 arms on the same {counted}", threshold, "baselines.json")


def _retention(evidence: Evidence) -> Outcome:
    card = evidence["scorecard"]
    margin = card["retention_margin"]
    threshold = f"95 % interval of tuned − base above −{100 * margin:g} points"
    differences = card["differences"].get("retention")
    if not differences:
        return Outcome(
            Status.NOT_RUN,
            "nothing: no retention items were evaluated",
            threshold,
            "contract: evaluation.retention",
            "add evaluation.retention, a JSONL of items of general ability, and run again",
        )
    difference = differences["tuned - base"]
    status = judge_retention(difference, margin)
    action = {
        Status.FAIL: "lower the learning rate, rank or epochs, or mix general data into training",
        Status.INSUFFICIENT_EVIDENCE: "evaluate more retention items, so that the interval narrows",
    }.get(status, "")
    return Outcome(
        status, f"{_points(difference)} tuned − base", threshold, "scorecard.json", action
    )


def _gain(evidence: Evidence) -> Outcome:
    differences = evidence["scorecard"]["differences"]["task"]
    threshold = f"above the base with exact McNemar p < {ALPHA}, and not below the prompted base"
    base, prompted = differences["tuned - base"], differences["tuned - prompted"]
    status = judge_gain(differences)
    measured = (
        f"{_points(base)} tuned − base, {p_value(base['p'])}; "
        f"{_points(prompted)} tuned − prompted, {p_value(prompted['p'])}"
    )
    action = {
        Status.FAIL: "do not use this model for the task; prompt the base, or change the contract",
        Status.INSUFFICIENT_EVIDENCE: "evaluate more task items, or train further",
    }.get(status, "")
    return Outcome(status, measured, threshold, "scorecard.json", action)


def _finish(evidence: Evidence) -> Outcome:
    task = evidence["evaluation"]["arms"]["tuned"]["task"]
    threshold = f"at least {100 * _FINISHED:g} % of generations stop by themselves"
    if task.get("metric") != "exact match":
        return Outcome(
            Status.NOT_RUN,
            "nothing: the task is scored by log-probabilities, no answer is generated",
            threshold,
            action="none needed; give task items with `answer` to measure it",
        )
    finished = task["items"] - task["unfinished"]
    measured = f"{finished} of {task['items']} ({100 * finished / task['items']:.1f} %)"
    if finished >= _FINISHED * task["items"]:
        return Outcome(Status.PASS, measured, threshold, task.get("file", ""))
    action = "raise evaluation.max_new_tokens, and see that the end-of-turn token is trained on"
    return Outcome(Status.FAIL, measured, threshold, task.get("file", ""), action)


def _enough_items(evidence: Evidence) -> Outcome:
    """Say whether any answers to so many items could pass the checks of gain and retention."""
    task, retention, margin = _sizes(evidence)
    threshold = f"a result on them exists that passes: {FEWEST_ITEMS} task items"
    lacking = [] if can_show_gain(task) else [f"{FEWEST_ITEMS} task items or more"]
    if retention:
        threshold += f", and retention items enough for a margin of {100 * margin:g} points"
        if not can_show_retention(retention, margin):
            lacking.append("more retention items")
    measured = f"{task} task items, {retention} retention items"
    if lacking:
        action = f"give {' and '.join(lacking)}: on these no answers could pass"
        return Outcome(
            Status.INSUFFICIENT_EVIDENCE, measured, threshold, "contract: evaluation", action
        )
    return Outcome(Status.PASS, measured, threshold, "plan.json data")


def _resolves_margin(evidence: Evidence) -> Outcome:
    """Say whether a model that answers as its base can be found to have kept its retention."""
    _, retention, margin = _sizes(evidence)
    threshold = f"an interval of no change that ends above −{100 * margin:g} points"
    if not retention:
        return Outcome(
            Status.NOT_RUN,
            "nothing: the contract has no retention items",
            threshold,
            "contract: evaluation.retention",
            "add evaluation.retention, a JSONL of items of general ability",
        )
    reach = smallest_kept_margin(retention)
    measured = f"at best −{100 * reach:.1f} points on {retention} items"
    if reach < margin:
        return Outcome(Status.PASS, measured, threshold, "plan.json power")
    action = "evaluate more retention items: as it is, only a model that gains on them can pass"
    return Outcome(
        Status.INSUFFICIENT_EVIDENCE, measured, threshold, "contract: evaluation", action
    )


def _sizes(evidence: Evidence) -> tuple[int, int, float]:
    """Return the planned task and retention items, and the margin of retention."""
    data = evidence["plan"]["data"]
    margin = evidence["contract"]["evaluation"]["retention_margin"]
    return data["task_items"], data["retention_items"], margin


def _points(difference: Mapping[str, Any]) -> str:
    low, high = 100 * difference["low"], 100 * difference["high"]
    return f"{100 * difference['difference']:+.1f} points ({low:+.1f} to {high:+.1f})"


CHECKS: tuple[Check, ...] = (
    Check(
        id="baselines-same-items",
        choice="evaluation",
        stage="evaluation",
        claim="The base, the prompt-only base and the tuned model answered the same items.",
        needs=("plan", "baselines", "evaluation"),
        judge=_same_items,
        covers=("distributed-eval-duplicates",),
    ),
    Check(
        id="retention-measured",
        choice="evaluation",
        stage="evaluation",
        claim="General ability was measured after adaptation and was not lost beyond the margin.",
        needs=("scorecard",),
        judge=_retention,
        covers=("retention-not-measured",),
    ),
    Check(
        id="task-gain",
        choice="evaluation",
        stage="evaluation",
        claim="The tuned model is better at the task than the base and no worse than prompting it.",
        needs=("scorecard",),
        judge=_gain,
    ),
    Check(
        id="answers-finish",
        choice="evaluation",
        stage="evaluation",
        claim="The tuned model ends its answers by itself within the token limit.",
        needs=("evaluation",),
        judge=_finish,
        covers=("generation-budget-too-small", "stop-token-not-in-generation-config"),
        required=False,
    ),
    Check(
        id="enough-items",
        choice="evaluation",
        stage="static",
        claim="There are items enough for the checks of gain and retention to come to a PASS.",
        needs=("contract", "plan"),
        judge=_enough_items,
    ),
    Check(
        id="retention-resolves-margin",
        choice="evaluation",
        stage="static",
        claim="A model that answers as its base does can be found to have kept its retention.",
        needs=("contract", "plan"),
        judge=_resolves_margin,
        required=False,
    ),
)
