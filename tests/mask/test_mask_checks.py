from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from tunemath.findings import Status
from tunemath.mask import Example, Item, Message, certify, encode_example
from tunemath.mask.checks import CHECKS

BY_ID = {check.id: check for check in CHECKS}


@pytest.fixture
def evidence(model, tmp_path):
    template, tokenizer = model("chatml", generation={"eos_token_id": 4})
    data = tmp_path / "train.jsonl"
    data.write_text("{}")
    examples = [
        Example(f"r{k}", (Message("user", f"what {k}?"), Message("assistant", "yes")), f"t:{k}")
        for k in range(4)
    ]
    encoded = [encode_example(example, template, tokenizer) for example in examples]
    items = [Item("i0", (Message("user", "what else?"),), "items:1", answer="no")]
    mask = certify(examples, encoded, template, tokenizer, data=data, task=items)
    seen = {"expected": 8, "certified": 8, "uncertified": 0}
    lengths = {"training rows": {"longest": 9, "beyond": 0, "first_beyond": []}}
    plan = {"positions": {"limit": 9, "lengths": lengths}}
    return {"mask": mask, "training": {"rows_seen": seen}, "plan": plan}


def test_checks_are_five_and_two_are_required():
    assert [(check.id, check.required) for check in CHECKS] == [
        ("answer-mask", True),
        ("undeclared-text", False),
        ("train-eval-overlap", True),
        ("terminator-stops", False),
        ("within-positions", False),
    ]
    assert {check.choice for check in CHECKS} == {"mask"}


@pytest.mark.parametrize("name", BY_ID)
def test_right_evidence_passes_and_absent_evidence_is_not_run(evidence, name):
    finding = BY_ID[name].run(evidence)
    assert finding.status is Status.PASS, finding
    assert finding.measured
    assert finding.threshold
    assert BY_ID[name].run({}).status is Status.NOT_RUN


def test_answer_mask_needs_training_too(evidence):
    alone = BY_ID["answer-mask"].run({"mask": evidence["mask"]})
    assert alone.status is Status.NOT_RUN
    assert "no training" in alone.measured


def test_a_violation_fails_before_anything_is_trained(evidence):
    evidence["mask"]["violations"]["answer_text_differs"] = 2
    finding = BY_ID["answer-mask"].run({"mask": evidence["mask"]})
    assert (finding.status, finding.measured) == (Status.FAIL, "2 answer_text_differs in 4 rows")


def test_a_row_beyond_the_positions_fails_and_a_model_without_limit_passes(evidence):
    check, positions = BY_ID["within-positions"], evidence["plan"]["positions"]
    row = {"longest": 10, "beyond": 3, "first_beyond": ["t.jsonl:2", "t.jsonl:3"]}
    positions["lengths"]["training rows"] = row
    finding = check.run(evidence)
    assert (finding.status, finding.where) == (Status.FAIL, "t.jsonl:2, t.jsonl:3")
    assert finding.measured == "3 training rows beyond; at most 10 of 9 positions"
    positions["limit"] = None
    assert check.run(evidence).status is Status.PASS


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"expected": 8, "certified": 7, "uncertified": 1}, "7 of 8 .* 1 are not"),
        ({"expected": 8, "certified": 7, "uncertified": 0}, "7 of 8 rows that reached the model"),
        ({"expected": 8, "certified": 9, "uncertified": 0}, "9 of 8"),
    ],
)
def test_rows_that_were_not_certified_fail(evidence, seen, said):
    finding = BY_ID["answer-mask"].run({**evidence, "training": {"rows_seen": seen}})
    assert finding.status is Status.FAIL
    assert pytest.importorskip("re").search(said, finding.measured)
    assert finding.action


@pytest.mark.parametrize(
    "kind",
    [
        "prompt_or_padding_supervised",
        "answer_text_differs",
        "terminator_not_supervised",
        "double_bos",
        "pair_prompt_differs",
    ],
)
def test_each_mask_violation_fails_and_names_a_row(evidence, kind):
    broken = copy.deepcopy(evidence)
    broken["mask"]["violations"][kind] = 2
    broken["mask"]["first_violations"] = [{"kind": kind, "where": "t:3", "detail": "odd"}]
    finding = BY_ID["answer-mask"].run(broken)
    assert finding.status is Status.FAIL
    assert f"2 {kind}" in finding.measured
    assert finding.where == "t:3: odd"


def test_an_unstable_boundary_alone_does_not_fail(evidence):
    evidence["mask"]["violations"]["unstable_boundary"] = 3
    assert BY_ID["answer-mask"].run(evidence).status is Status.PASS


def test_a_planted_fault_reaches_the_verdict(model, tmp_path):
    template, tokenizer = model("chatml")
    data = tmp_path / "train.jsonl"
    data.write_text("{}")
    example = Example("r", (Message("user", "what?"), Message("assistant", "yes")), "t:1")
    encoded = encode_example(example, template, tokenizer)
    mask = [on and i != 4 for i, on in zip(encoded.input_ids, encoded.supervised, strict=True)]
    broken = replace(encoded, supervised=tuple(mask))
    evidence = {
        "mask": certify([example], [broken], template, tokenizer, data=data),
        "training": {"rows_seen": {"expected": 1, "certified": 1, "uncertified": 0}},
    }
    assert BY_ID["answer-mask"].run(evidence).status is Status.FAIL


def test_undeclared_text_quotes_what_the_template_adds(evidence):
    evidence["mask"]["violations"]["undeclared_text"] = 4
    evidence["mask"]["undeclared"] = [{"text": "You are X", "rows": 4}]
    finding = BY_ID["undeclared-text"].run(evidence)
    assert finding.status is Status.FAIL
    assert "'You are X'" in finding.where
    assert "without the date" not in finding.action
    evidence["mask"]["violations"]["clock_dependent"] = 4
    assert "without the date" in BY_ID["undeclared-text"].run(evidence).action


def test_overlap_names_the_items_and_not_comparing_is_not_run(evidence):
    check = BY_ID["train-eval-overlap"]
    evidence["mask"]["overlap"] = {
        "task": {"exact": 1, "rows": [{"item": "i0", "train": "r2"}]},
        "retention": None,
    }
    finding = check.run(evidence)
    assert (finding.status, finding.where) == (Status.FAIL, "i0 = r2")
    evidence["mask"]["overlap"] = {"task": None, "retention": None}
    assert check.run(evidence).status is Status.NOT_RUN


def test_a_terminator_that_does_not_stop_generation_fails(evidence):
    evidence["mask"]["terminator"]["stops_generation"] = False
    finding = BY_ID["terminator-stops"].run(evidence)
    assert finding.status is Status.FAIL
    assert "generation_config.json" in finding.action
