from __future__ import annotations

import copy

import pytest

from tunemath.evaluation import build_scorecard
from tunemath.evaluation.checks import CHECKS
from tunemath.findings import Status

BY_ID = {check.id: check for check in CHECKS}


def results(correct, items):
    return [{"id": str(k), "score": int(k < correct), "reference": "x"} for k in range(items)]


def arm(correct, kept, unfinished=0):
    return {
        "task": {
            "metric": "exact match",
            "items": 150,
            "correct": correct,
            "unfinished": unfinished,
            "file": "items/x.task.jsonl",
            "items_sha256": "t",
        },
        "retention": {
            "metric": "choice accuracy",
            "items": 300,
            "correct": kept,
            "items_sha256": "r",
        },
    }


@pytest.fixture
def evidence():
    scores = {"base": (6, 200), "prompted": (15, 200), "tuned": (104, 198)}
    card = build_scorecard(
        {
            name: {"task": results(task, 150), "retention": results(kept, 300)}
            for name, (task, kept) in scores.items()
        }
    )
    arms = {name: arm(*score) for name, score in scores.items()}
    return {
        "contract": {"evaluation": {"retention_margin": 0.10}},
        "plan": {"data": {"task_items": 150, "retention_items": 300}},
        "baselines": {"arms": {name: arms[name] for name in ("base", "prompted")}},
        "evaluation": {"arms": {"tuned": arms["tuned"]}},
        "scorecard": card,
    }


def test_checks_are_six_and_four_are_required():
    assert [(check.id, check.required) for check in CHECKS] == [
        ("baselines-same-items", True),
        ("retention-measured", True),
        ("task-gain", True),
        ("answers-finish", False),
        ("enough-items", True),
        ("retention-resolves-margin", False),
    ]


@pytest.mark.parametrize("name", BY_ID)
def test_right_evidence_passes_and_absent_evidence_is_not_run(evidence, name):
    finding = BY_ID[name].run(evidence)
    assert finding.status is Status.PASS, finding
    assert finding.measured
    assert finding.threshold
    assert BY_ID[name].run({}).status is Status.NOT_RUN


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: e["baselines"]["arms"].pop("prompted"), "task: prompted not evaluated"),
        (lambda e: e["baselines"]["arms"].pop("base"), "task: base not evaluated"),
        (
            lambda e: e["evaluation"]["arms"]["tuned"]["task"].update(items_sha256="other"),
            "task: 2 different item hashes",
        ),
        (
            lambda e: e["baselines"]["arms"]["base"].update(retention=None),
            "retention: base not evaluated",
        ),
        (
            lambda e: e["evaluation"]["arms"]["tuned"]["retention"].update(items=304),
            "retention: 300 and 304 items scored, 300 planned",
        ),
    ],
)
def test_baselines_on_other_items_fail(evidence, change, said):
    broken = copy.deepcopy(evidence)
    change(broken)
    finding = BY_ID["baselines-same-items"].run(broken)
    assert finding.status is Status.FAIL
    assert said in finding.measured
    assert finding.action


def test_baselines_without_a_retention_set_are_judged_on_the_task(evidence):
    for product in ("baselines", "evaluation"):
        for results_of in evidence[product]["arms"].values():
            results_of["retention"] = None
    finding = BY_ID["baselines-same-items"].run(evidence)
    assert (finding.status, finding.measured) == (Status.PASS, "3 arms on the same 150 task items")


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [
        (-0.30, -0.11, Status.FAIL),
        (-0.20, -0.05, Status.INSUFFICIENT_EVIDENCE),
        (-0.05, 0.03, Status.PASS),
    ],
)
def test_retention_by_its_interval(evidence, low, high, status):
    evidence["scorecard"]["differences"]["retention"]["tuned - base"].update(low=low, high=high)
    finding = BY_ID["retention-measured"].run(evidence)
    assert finding.status is status
    assert bool(finding.action) == (status is not Status.PASS)


def test_retention_that_was_not_measured_is_not_run_and_says_how(evidence):
    evidence["scorecard"]["differences"]["retention"] = None
    finding = BY_ID["retention-measured"].run(evidence)
    assert finding.status is Status.NOT_RUN
    assert "add evaluation.retention" in finding.action


@pytest.mark.parametrize(
    ("arm_name", "change", "status"),
    [
        ("tuned - base", {"difference": -0.2, "high": -0.1}, Status.FAIL),
        ("tuned - base", {"p": 0.06}, Status.INSUFFICIENT_EVIDENCE),
        ("tuned - prompted", {"difference": -0.2, "p": 0.001}, Status.FAIL),
        ("tuned - prompted", {"difference": -0.02, "p": 0.8}, Status.INSUFFICIENT_EVIDENCE),
    ],
)
def test_task_gain_against_both_baselines(evidence, arm_name, change, status):
    evidence["scorecard"]["differences"]["task"][arm_name].update(change)
    finding = BY_ID["task-gain"].run(evidence)
    assert finding.status is status
    assert "tuned − prompted" in finding.measured
    assert finding.action


def test_answers_that_do_not_finish(evidence):
    task = evidence["evaluation"]["arms"]["tuned"]["task"]
    task["unfinished"] = 8
    finding = BY_ID["answers-finish"].run(evidence)
    assert (finding.status, finding.measured) == (Status.FAIL, "142 of 150 (94.7 %)")
    task["unfinished"] = 7
    assert BY_ID["answers-finish"].run(evidence).status is Status.PASS
    task["metric"] = "choice accuracy"
    assert BY_ID["answers-finish"].run(evidence).status is Status.NOT_RUN
