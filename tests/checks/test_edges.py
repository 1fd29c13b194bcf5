"""Each limit of each check: the last evidence that passes, and the first that does not."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from planting import one_fewer, one_more, put

from tunemath.checks import Checklist
from tunemath.findings import Status
from tunemath.mask.certificate import MASK_VIOLATIONS

CHECKS = {check.id: check for check in Checklist().items}
PASS, FAIL, UNDECIDED = Status.PASS, Status.FAIL, Status.INSUFFICIENT_EVIDENCE
LARGEST, LEAST = math.nextafter(math.inf, 0), math.nextafter(0, 1)


@dataclass(frozen=True)
class Edge:
    """Two changes of a sound run's evidence, as near as can be, on either side of a limit.

    Where the limit is no number, the fault is the smallest: one token, row, parameter or item.
    """

    check: str
    inside: Mapping[str, Any]
    outside: Mapping[str, Any]
    kind: str = "sft"
    status: Status = PASS
    then: Status = FAIL


def above(value: float) -> float:
    return math.nextafter(value, math.inf)


def below(value: float) -> float:
    return math.nextafter(value, -math.inf)


def relative(change: float):
    return lambda rate: rate * (1 + change)


def first_tensor(**changes: float) -> dict[str, Any]:
    """Change how the first merged tensor differs from base + ΔW.

    Of its 144 elements rounding made noise of half of ΔW's norm: the tensor may be 0.05 + 1.5 / 2
    apart, and its share 0.05 + 3 / 2 / 12 from what rounding leaves.
    """
    noise = {"norm": 1.0, "rounding": 0.5, "elements": 144, "ideal": 1.0, "share": 1.0,
             "moved": 1.0, "apart": 0.0}  # fmt: skip
    return {"artefact/weights/by_tensor/0": lambda row: row | noise | changes}


COVERAGE, SEEN = "plan/parameters/coverage", "training/rows_seen"
SPLIT, IDENTITY, TENSORS = "training/micro_batch", "training/identity", "training/tensors"
TASK, KEPT = "scorecard/differences/task", "scorecard/differences/retention/tuned - base"
GAIN, PROMPT = f"{TASK}/tuned - base", f"{TASK}/tuned - prompted"
TUNED = "evaluation/arms/tuned"
WEIGHTS = "artefact/weights"
MARGIN = {"scorecard/retention_margin": 0.1}
PLANNED = {"contract/evaluation/retention_margin": 0.1}
LN2 = math.log(2)
ONE = {"exact": 1, "rows": [{"item": "task-1", "train": "train-2"}]}
TIED = {"was_tied": True, "should_be_tied": True, "declared_tied": True, "head_stored": False,
        "equal": None}  # fmt: skip
APART = {"was_tied": True, "should_be_tied": False, "declared_tied": False, "head_stored": True,
         "equal": False}  # fmt: skip

EDGES = (
    Edge("targets-matched", {}, {f"{COVERAGE}/unmatched": ["q_prj"]}),
    Edge("targets-reach", {}, {f"{COVERAGE}/findings": ["1 of 8 layers"]}),
    *(
        Edge("answer-mask", {"mask/violations/unstable_boundary": 24}, {f"mask/violations/{k}": 1})
        for k in MASK_VIOLATIONS
    ),
    Edge("answer-mask", {f"{SEEN}/miscounted": 1}, {f"{SEEN}/uncertified": 1}),
    *(Edge("answer-mask", {}, {f"{SEEN}/certified": by_one}) for by_one in (one_more, one_fewer)),
    *(
        Edge("trainable-count", {"training/trainable/peft": None}, {where: by_one})
        for where in ("plan/parameters/trainable", "training/trainable/planned",
                      "training/trainable/live", "training/trainable/peft")
        for by_one in (one_more, one_fewer)
    ),
    *(
        Edge("baselines-same-items", {}, {f"{arm}/{name}/items": by_one})
        for name in ("task", "retention")
        for arm in ("baselines/arms/base", "baselines/arms/prompted", TUNED)
        for by_one in (one_more, one_fewer)
    ),
    *(
        Edge("baselines-same-items", {}, {f"{arm}/{name}/items_sha256": lambda sha: sha[:-1] + "x"})
        for name in ("task", "retention")
        for arm in ("baselines/arms/base", "baselines/arms/prompted", TUNED)
    ),
    Edge("retention-measured", MARGIN | {f"{KEPT}/low": above(-0.1)},
         MARGIN | {f"{KEPT}/low": -0.1}, then=UNDECIDED),
    Edge("retention-measured", MARGIN | {f"{KEPT}/low": -0.2, f"{KEPT}/high": -0.1},
         MARGIN | {f"{KEPT}/low": -0.2, f"{KEPT}/high": below(-0.1)}, status=UNDECIDED),
    Edge("step0-identity", {f"{IDENTITY}/max_logit_difference": 1e-6},
         {f"{IDENTITY}/max_logit_difference": above(1e-6)}),
    Edge("step0-identity",
         {f"{IDENTITY}/moves_by_nature": True, f"{IDENTITY}/kl": LARGEST},
         {f"{IDENTITY}/moves_by_nature": True, f"{IDENTITY}/kl": math.inf}),
    *(
        Edge("only-intended-tensors-moved", {}, {f"{TENSORS}/{where}": ["one"]})
        for where in ("unmoved", "frozen_changed", "names_changed")
    ),
    *(
        Edge("adapter-merged-reloaded",
             {"artefact/tolerance": 0.5, f"artefact/{form}/max_logit_difference": 0.5},
             {"artefact/tolerance": 0.5, f"artefact/{form}/max_logit_difference": above(0.5)})
        for form in ("adapter_vs_reloaded", "adapter_vs_merged", "adapter_vs_reloaded_merged")
    ),
    Edge("merged-is-base-plus-update", first_tensor(apart=0.7999), first_tensor(apart=0.8001)),
    Edge("merged-is-base-plus-update", first_tensor(share=1.1749), first_tensor(share=1.1751)),
    Edge("merged-is-base-plus-update", first_tensor(share=0.8251), first_tensor(share=0.8249)),
    Edge("merged-is-base-plus-update", first_tensor(share=0.5, ideal=0.6),
         first_tensor(share=0.5, ideal=0.7)),
    Edge("merged-is-base-plus-update", first_tensor(norm=0.0, apart=2.0),
         first_tensor(norm=LEAST, apart=2.0)),
    Edge("merged-is-base-plus-update", {}, {f"{WEIGHTS}/differing": 1}),
    Edge("merged-is-base-plus-update", {}, {f"{WEIGHTS}/lacking": ["model.norm.weight"]}),
    Edge("update-survives-rounding", {f"{WEIGHTS}/share": 0.9}, {f"{WEIGHTS}/share": below(0.9)}),
    Edge("update-survives-rounding", {f"{WEIGHTS}/error": 1.0}, {f"{WEIGHTS}/error": above(1.0)}),
    Edge("update-survives-rounding", {f"{WEIGHTS}/share": 0.0, f"{WEIGHTS}/norm": 0.0},
         {f"{WEIGHTS}/share": 0.0, f"{WEIGHTS}/norm": LEAST}),
    # The head's facts one by one: what is declared, stored and equal must be what the update left.
    Edge("head-and-embedding-as-declared", {"artefact/head": APART},
         {"artefact/head": APART | {"declared_tied": True, "equal": None}}),
    Edge("head-and-embedding-as-declared", {"artefact/head": TIED | {"equal": True}},
         {"artefact/head": TIED | {"equal": False}}),
    Edge("head-and-embedding-as-declared", {"artefact/head": APART},
         {"artefact/head": APART | {"head_stored": False}}),
    Edge("head-and-embedding-as-declared",
         {"artefact/head": APART | {"should_be_tied": True, "equal": True}},
         {"artefact/head": APART | {"should_be_tied": True, "equal": False}}),
    Edge("head-and-embedding-as-declared",
         {"artefact/head": APART | {"was_tied": False, "head_stored": False}},
         {"artefact/head": APART | {"was_tied": True, "head_stored": False}}),
    Edge("base-is-the-one-trained-on", {"artefact/base/id": "elsewhere"},
         {"artefact/base/sha256": lambda sha: sha[:-1] + "x"}),
    Edge("new-tokens-saved", {"artefact/tokens/added": [7]}, {"artefact/tokens/untrained": [7]}),
    Edge("new-tokens-saved", {"artefact/tokens/added": [7]}, {"artefact/tokens/beyond": [7]}),
    Edge("stops-as-trained", {"artefact/stop": {"trained": [2, 5], "stops": [2, 5, 7]}},
         {"artefact/stop": {"trained": [2, 5], "stops": [2, 7]}}),
    *(
        Edge("micro-batch-invariance", {f"{SPLIT}/tolerance": 0.5, f"{SPLIT}/{what}": 0.5},
             {f"{SPLIT}/tolerance": 0.5, f"{SPLIT}/{what}": above(0.5)})
        for what in ("loss_difference", "gradient_difference")
    ),
    Edge("step0-loss", {"training/step0_loss": LEAST}, {"training/step0_loss": 0.0}),
    Edge("step0-loss", {"training/step0_loss": LARGEST}, {"training/step0_loss": math.inf}),
    *(
        Edge("step0-loss", {"training/step0_loss": LN2 + sign * 0.99999e-3},
             {"training/step0_loss": LN2 + sign * 1.00001e-3}, "dpo")
        for sign in (1, -1)
    ),
    Edge("undeclared-text", {}, {"mask/violations/undeclared_text": 1}),
    Edge("undeclared-text", {}, {"mask/violations/clock_dependent": 1}),
    Edge("train-eval-overlap", {"mask/overlap/retention": None}, {"mask/overlap/task": ONE}),
    Edge("train-eval-overlap", {"mask/overlap/task": None}, {"mask/overlap/retention": ONE}),
    Edge("terminator-stops", {}, {"mask/terminator/stops_generation": False}),
    *(Edge("budget-as-planned", {}, {"training/steps": one}) for one in (one_more, one_fewer)),
    *(
        Edge("budget-as-planned", {"training/log/-1/learning_rate": relative(sign * 0.999e-6)},
             {"training/log/-1/learning_rate": relative(sign * 1.001e-6)})
        for sign in (1, -1)
    ),
    # The first step of a warm-up has rate 0, where a relative limit is none.
    Edge("budget-as-planned", {"training/log/0/learning_rate": 1e-15},
         {"training/log/0/learning_rate": above(1e-15)}),
    Edge("budget-as-planned", {}, {"training/log": lambda log: log[:-1]}),
    Edge("budget-as-planned", {f"{SEEN}/uncertified": 1}, {f"{SEEN}/miscounted": 1}),
    Edge("finite-every-step", {"training/log/-1/loss": LEAST}, {"training/log/-1/loss": 0.0}),
    Edge("finite-every-step", {"training/log/0/loss": LARGEST}, {"training/log/0/loss": math.inf}),
    Edge("finite-every-step", {"training/log/0/grad_norm": LARGEST},
         {"training/log/0/grad_norm": math.inf}),
    Edge("finite-every-step", {"training/log": lambda log: log[:1]}, {"training/log": []}),
    Edge("task-gain", {f"{GAIN}/p": below(0.05)}, {f"{GAIN}/p": 0.05}, then=UNDECIDED),
    Edge("task-gain", {f"{GAIN}/difference": LEAST}, {f"{GAIN}/difference": 0.0}, then=UNDECIDED),
    Edge("task-gain", {f"{GAIN}/p": 1.0, f"{GAIN}/high": 0.0},
         {f"{GAIN}/p": 1.0, f"{GAIN}/high": -LEAST}, status=UNDECIDED),
    Edge("task-gain", {f"{PROMPT}/difference": 0.0, f"{PROMPT}/p": 1.0},
         {f"{PROMPT}/difference": -LEAST, f"{PROMPT}/p": 1.0}, then=UNDECIDED),
    Edge("task-gain", {f"{PROMPT}/difference": -0.1, f"{PROMPT}/p": 0.05},
         {f"{PROMPT}/difference": -0.1, f"{PROMPT}/p": below(0.05)}, status=UNDECIDED),
    Edge("answers-finish", {f"{TUNED}/task/items": 20, f"{TUNED}/task/unfinished": 1},
         {f"{TUNED}/task/items": 20, f"{TUNED}/task/unfinished": 2}),
    Edge("within-positions", {}, {"plan/positions/lengths/task items/beyond": 1}),
    # McNemar of six items won is 2 / 2**6 = 0.03, of five 0.06.
    Edge("enough-items", {"plan/data/task_items": 6}, {"plan/data/task_items": 5}, then=UNDECIDED),
    Edge("enough-items", PLANNED | {"plan/data/retention_items": 2},
         PLANNED | {"plan/data/retention_items": 1}, then=UNDECIDED),
    # 1.96 / sqrt(n (n + 1.96**2)) is 0.0988 for 18 items and 0.1041 for 17.
    Edge("retention-resolves-margin", PLANNED | {"plan/data/retention_items": 18},
         PLANNED | {"plan/data/retention_items": 17}, then=UNDECIDED),
)  # fmt: skip


def name_of(edge: Edge) -> str:
    return f"{EDGES.index(edge)}-{edge.check}"


def judged(good: dict[str, Any], edge: Edge, changes: Mapping[str, Any]) -> Status:
    evidence = copy.deepcopy(good[edge.kind])
    for path, value in changes.items():
        put(path, value)(evidence)
    return CHECKS[edge.check].run(evidence).status


@pytest.mark.parametrize("edge", EDGES, ids=name_of)
def test_a_limit_lies_where_it_is_said_to(good, edge):
    assert judged(good, edge, edge.inside) is edge.status
    assert judged(good, edge, edge.outside) is edge.then


NUMBERS = [
    (edge, path)
    for edge in EDGES
    for path, value in edge.outside.items()
    if edge.status is PASS and isinstance(value, float) and edge.inside.get(path) != value
]


@pytest.mark.parametrize(("edge", "path"), NUMBERS, ids=lambda each: getattr(each, "check", each))
def test_what_is_no_number_is_on_no_good_side_of_a_limit(good, edge, path):
    assert judged(good, edge, {**edge.inside, path: math.nan}) is not PASS


def test_every_check_has_an_edge():
    assert {edge.check for edge in EDGES} == set(CHECKS)
