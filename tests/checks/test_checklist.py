"""The registry: what it promises, and that each check can fail."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planting import one_more, put

from tunemath.checks import OWED, Checklist
from tunemath.findings import Check, Status

FAILURES = Path(__file__).parents[3] / "shared" / "FAILURES.md"
CHECKS = {check.id: check for check in Checklist().items}
CHOICES = ("space", "objective", "mask", "budget", "evaluation")


def test_the_four_that_are_owed_come_first():
    assert list(CHECKS)[:4] == [
        "answer-mask",
        "trainable-count",
        "baselines-same-items",
        "retention-measured",
    ]
    assert all(CHECKS[name].required for name in OWED)


def test_ids_are_unique_and_every_choice_is_checked():
    from tunemath.budget.checks import CHECKS as BUDGET
    from tunemath.evaluation.checks import CHECKS as EVALUATION
    from tunemath.mask.checks import CHECKS as MASK
    from tunemath.objective.checks import CHECKS as OBJECTIVE
    from tunemath.space.checks import CHECKS as SPACE

    rooms = dict(zip(CHOICES, (SPACE, OBJECTIVE, MASK, BUDGET, EVALUATION), strict=True))
    ids = [check.id for room in rooms.values() for check in room]
    assert sorted(ids) == sorted(set(ids)) == sorted(CHECKS)
    for choice, room in rooms.items():
        assert room
        assert {check.choice for check in room} == {choice}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_check_says_what_it_proves(check: Check):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", check.id)
    assert check.claim.endswith(".")
    assert check.claim[0].isupper()
    assert check.needs
    assert len(set(check.covers)) == len(check.covers)


def test_what_checks_cover_is_known():
    if not FAILURES.exists():
        pytest.skip(f"the list of known failures is not here ({FAILURES.name})")
    known = set(re.findall(r"^\| `([a-z0-9-]+)` \|", FAILURES.read_text("utf-8"), re.MULTILINE))
    assert len(known) > 100
    claimed = {name for check in CHECKS.values() for name in check.covers}
    assert claimed - known == set()


# --- every check on a real run, and on faults planted in its evidence


@pytest.mark.parametrize("kind", ["sft", "dpo"])
@pytest.mark.parametrize("name", CHECKS)
def test_every_check_passes_on_a_sound_run(good, kind, name):
    finding = CHECKS[name].run(good[kind])
    generates = kind == "sft" or name != "answers-finish"
    assert finding.status is (Status.PASS if generates else Status.NOT_RUN), finding
    assert finding.measured
    assert finding.threshold


TASK, KEPT = "scorecard/differences/task", "scorecard/differences/retention"
LOST = {"difference": -0.3, "low": -0.4, "high": -0.2, "p": 1e-4, "wins": 0, "losses": 12}
UNSURE = {"difference": -0.05, "low": -0.15, "high": 0.05, "p": 0.4, "wins": 1, "losses": 2}
FAIL, UNDECIDED = Status.FAIL, Status.INSUFFICIENT_EVIDENCE
# Tied in the base, apart in the update, and still declared as one.
APART = {
    "was_tied": True, "should_be_tied": False, "declared_tied": True, "head_stored": True,
    "equal": False,
}  # fmt: skip

FAULTS: list[tuple[str, str, Callable[[dict[str, Any]], None], Status]] = [
    ("targets-matched", "sft", put("plan/parameters/coverage/unmatched", ["q_prj"]), FAIL),
    ("targets-matched", "sft", put("plan/parameters/coverage", None), Status.NOT_RUN),
    ("targets-reach", "sft", put("plan/parameters/coverage/findings", ["2 of 8 layers"]), FAIL),
    ("targets-reach", "sft", put("plan/parameters/coverage", None), Status.NOT_RUN),
    ("answer-mask", "sft", put("mask/violations/prompt_or_padding_supervised", 1), FAIL),
    ("answer-mask", "sft", put("mask/violations/answer_text_differs", 2), FAIL),
    ("answer-mask", "sft", put("mask/violations/terminator_not_supervised", 24), FAIL),
    ("answer-mask", "sft", put("mask/violations/double_bos", 1), FAIL),
    ("answer-mask", "sft", put("training/rows_seen/uncertified", 1), FAIL),
    ("answer-mask", "sft", put("training/rows_seen/certified", 143), FAIL),
    ("trainable-count", "sft", put("training/trainable/live", one_more), FAIL),
    ("trainable-count", "sft", put("training/trainable/peft", one_more), FAIL),
    ("trainable-count", "sft", put("training/trainable/planned", one_more), FAIL),
    ("trainable-count", "sft", put("plan/parameters/trainable", one_more), FAIL),
    ("baselines-same-items", "sft", put("baselines/arms/base/task/items_sha256", "x"), FAIL),
    ("baselines-same-items", "sft", put("evaluation/arms/tuned/retention/items", 39), FAIL),
    ("baselines-same-items", "sft", put("baselines/arms/prompted/task", None), FAIL),
    ("baselines-same-items", "sft", put("plan/data/task_items", 13), FAIL),
    ("retention-measured", "sft", put(f"{KEPT}/tuned - base", LOST), FAIL),
    ("retention-measured", "sft", put(f"{KEPT}/tuned - base", UNSURE), UNDECIDED),
    ("retention-measured", "sft", put(KEPT, None), Status.NOT_RUN),
    ("step0-identity", "sft", put("training/identity/switched_off", 0.01), FAIL),
    ("step0-identity", "sft", put("training/identity/max_logit_difference", 1e-4), FAIL),
    ("only-intended-tensors-moved", "sft", put("training/tensors/unmoved", ["a"]), FAIL),
    ("only-intended-tensors-moved", "sft", put("training/tensors/frozen_changed", ["b"]), FAIL),
    ("only-intended-tensors-moved", "sft", put("training/tensors/names_changed", ["c"]), FAIL),
    *(
        (
            "adapter-merged-reloaded",
            "sft",
            put(f"artefact/{form}/max_logit_difference", 0.01),
            FAIL,
        )
        for form in ("adapter_vs_reloaded", "adapter_vs_merged", "adapter_vs_reloaded_merged")
    ),
    *(
        ("merged-is-base-plus-update", "sft", put(f"artefact/weights/{where}", value), FAIL)
        for where, value in (
            ("by_tensor/0", lambda row: {**row, "share": 2.0, "moved": 2.0, "apart": 1.0}),
            ("by_tensor/0", lambda row: {**row, "share": 0.0, "moved": 0.0, "apart": 1.0}),
            ("differing", 1),
            ("lacking", ["model.norm.weight"]),
        )
    ),
    ("update-survives-rounding", "sft", put("artefact/weights/share", 0.3), FAIL),
    ("head-and-embedding-as-declared", "sft", put("artefact/head", APART), FAIL),
    ("base-is-the-one-trained-on", "sft", put("artefact/base/trained_on", "f" * 64), FAIL),
    ("base-is-the-one-trained-on", "sft", put("artefact/base/trained_on", None), UNDECIDED),
    ("new-tokens-saved", "sft", put("artefact/tokens/untrained", [7]), FAIL),
    ("stops-as-trained", "sft", put("artefact/stop/stops", []), FAIL),
    ("stops-as-trained", "sft", put("artefact/stop/trained", None), UNDECIDED),
    ("micro-batch-invariance", "sft", put("training/micro_batch/loss_difference", 0.01), FAIL),
    ("micro-batch-invariance", "sft", put("training/micro_batch/gradient_difference", 0.1), FAIL),
    ("step0-loss", "sft", put("training/step0_loss", 0.0), FAIL),
    ("step0-loss", "sft", put("training/step0_loss", math.nan), FAIL),
    ("step0-loss", "dpo", put("training/step0_loss", 0.7), FAIL),
    ("undeclared-text", "sft", put("mask/violations/undeclared_text", 3), FAIL),
    ("undeclared-text", "sft", put("mask/violations/clock_dependent", 3), FAIL),
    (
        "train-eval-overlap",
        "sft",
        put("mask/overlap/task", {"exact": 1, "rows": [{"item": "task-1", "train": "train-2"}]}),
        FAIL,
    ),
    ("terminator-stops", "sft", put("mask/terminator/stops_generation", False), FAIL),
    (
        "within-positions",
        "sft",
        put(
            "plan/positions/lengths/training rows",
            {"longest": 513, "beyond": 1, "first_beyond": ["train.jsonl:1"]},
        ),
        FAIL,
    ),
    ("within-positions", "sft", put("plan/positions", None), Status.NOT_RUN),
    ("enough-items", "sft", put("plan/data/task_items", 5), UNDECIDED),
    ("enough-items", "sft", put("plan/data/retention_items", 1), UNDECIDED),
    ("retention-resolves-margin", "sft", put("plan/data/retention_items", 17), UNDECIDED),
    ("retention-resolves-margin", "sft", put("plan/data/retention_items", 0), Status.NOT_RUN),
    ("budget-as-planned", "sft", put("training/steps", 17), FAIL),
    ("budget-as-planned", "sft", put("training/log/3/learning_rate", lambda r: r * 1.01), FAIL),
    ("budget-as-planned", "sft", put("training/log", lambda log: log[1:]), FAIL),
    ("budget-as-planned", "sft", put("training/rows_seen/miscounted", 1), FAIL),
    ("finite-every-step", "sft", put("training/log/2/loss", math.nan), FAIL),
    ("finite-every-step", "sft", put("training/log/2/grad_norm", math.inf), FAIL),
    ("finite-every-step", "sft", put("training/log/2/loss", 0.0), FAIL),
    ("finite-every-step", "sft", put("training/log", []), FAIL),
    ("task-gain", "sft", put(f"{TASK}/tuned - base", LOST), FAIL),
    ("task-gain", "sft", put(f"{TASK}/tuned - prompted", LOST), FAIL),
    ("task-gain", "sft", put(f"{TASK}/tuned - base", UNSURE), UNDECIDED),
    ("answers-finish", "sft", put("evaluation/arms/tuned/task/unfinished", 6), FAIL),
]


@pytest.mark.parametrize(
    ("name", "kind", "fault", "expected"),
    FAULTS,
    ids=[f"{index}-{name}" for index, (name, *_) in enumerate(FAULTS)],
)
def test_every_check_sees_its_faults(good, name, kind, fault, expected):
    evidence = copy.deepcopy(good[kind])
    fault(evidence)
    finding = CHECKS[name].run(evidence)
    assert finding.status is expected, finding
    assert finding.action, "a finding that is not PASS says what to do"


def test_every_check_has_a_planted_fault():
    assert {name for name, *_ in FAULTS} == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_absent_evidence_is_not_run(good, name):
    check = CHECKS[name]
    for need in check.needs:
        finding = check.run({key: value for key, value in good["sft"].items() if key != need})
        assert finding.status is Status.NOT_RUN
        assert need in finding.measured
        assert need in finding.action


@pytest.mark.parametrize("name", CHECKS)
def test_evidence_of_another_shape_is_never_a_pass(good, name):
    finding = CHECKS[name].run({**good["sft"], **{need: {"x": 1} for need in CHECKS[name].needs}})
    assert finding.status in (Status.ERROR, Status.NOT_RUN, Status.INSUFFICIENT_EVIDENCE)
    assert finding.status is not Status.ERROR or "Error: " in finding.measured


def test_nothing_at_all_is_not_enough():
    product = Checklist().product({})
    assert (product["verdict"], product["exit_code"]) == ("INSUFFICIENT_EVIDENCE", 3)
    assert {finding["status"] for finding in product["findings"]} == {"NOT_RUN"}
    assert len(product["findings"]) == len(CHECKS)
