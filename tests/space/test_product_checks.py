"""What is said of a merged tensor, from how it differs from base + ΔW: the words and the advice."""

from __future__ import annotations

from typing import Any

import pytest

from tunemath.findings import Status
from tunemath.space.product_checks import PRODUCT_CHECKS

BY_ID = {check.id: check for check in PRODUCT_CHECKS}
HELD = "merged-is-base-plus-update"
# Exact arithmetic, where rounding leaves nothing: 0.05 are allowed in everything.
RIGHT = {"norm": 2.0, "share": 1.0, "ideal": 1.0, "apart": 0.0, "moved": 1.0, "rounding": 0.0,
         "elements": 64}  # fmt: skip


def judged(*rows: dict[str, Any], **weights: Any):
    made = [{"name": f"w{i}", **RIGHT, **row} for i, row in enumerate(rows)]
    held = {"tensors": 9, "unchanged": 7, "differing": 0, "differing_such_as": [], "lacking": [],
            "norm": 3.0, "by_tensor": made}  # fmt: skip
    return BY_ID[HELD].run({"artefact": {"weights": held | weights}})


# Of the product less the base: the share along ΔW, and its norm, in units of ‖ΔW‖.
@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"share": 0.0, "moved": 0.0, "apart": 1.0}, "none of the update"),
        ({"share": 0.049, "moved": 0.049, "apart": 1.0}, "none of the update"),
        ({"share": 0.051, "moved": 0.051, "apart": 1.0}, "in another scale"),
        ({"share": 0.049, "moved": 0.051, "apart": 1.0}, "in another scale"),
        ({"share": -0.049, "moved": 0.049, "apart": 1.0}, "none of the update"),
        ({"share": 2.0, "moved": 2.0, "apart": 1.0}, "the update twice"),
        ({"share": 1.901, "moved": 1.901, "apart": 1.0}, "the update twice"),
        ({"share": 1.899, "moved": 1.899, "apart": 1.0}, "in another scale"),
        ({"share": 2.099, "moved": 2.099, "apart": 1.0}, "the update twice"),
        ({"share": 2.101, "moved": 2.101, "apart": 1.0}, "in another scale"),
        ({"share": -1.0, "moved": 1.0, "apart": 2.0}, "in another scale"),
        ({"share": 0.2, "moved": 1.0, "apart": 1.3, "turned": 1.099}, "the transposed update"),
        ({"share": 0.2, "moved": 1.0, "apart": 1.3, "turned": 0.901}, "the transposed update"),
        ({"share": 0.2, "moved": 1.0, "apart": 1.3, "turned": 1.101}, "another change"),
        ({"share": 0.2, "moved": 1.0, "apart": 1.3}, "another change"),
        # Beside ΔW: √(moved² − share²), which may be 0.05 of the share where that is above 1.
        ({"share": 0.5, "moved": 0.5024, "apart": 0.5}, "in another scale"),  # 0.0490
        ({"share": 0.5, "moved": 0.5026, "apart": 0.5}, "another change"),  # 0.0511
        ({"share": 3.0, "moved": 3.0036, "apart": 2.0}, "in another scale"),  # 0.1470
        ({"share": 3.0, "moved": 3.0039, "apart": 2.0}, "another change"),  # 0.1530
        ({"share": 2.0, "moved": 1.99, "apart": 1.0}, "the update twice"),  # by rounding: 0
    ],
)  # fmt: skip
def test_a_fault_is_called_what_it_is(row, fault):
    finding = judged(row, {})
    assert finding.status is Status.FAIL
    assert finding.measured.startswith("1 of 2 hold ")
    assert fault in finding.measured
    assert finding.where.startswith("w0")


# Rounding of half of ΔW in 144 elements: 0.8 apart, shares off by 0.05 + 3 · 0.5 / 12.
@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"share": 0.174, "moved": 0.79, "apart": 1.0}, "none of the update"),
        ({"share": 0.176, "moved": 0.79, "apart": 1.0}, "in another scale"),
        ({"share": 0.174, "moved": 0.81, "apart": 1.0}, "in another scale"),
        ({"share": 0.5, "moved": 1.0, "apart": 1.3, "turned": 1.349}, "the transposed update"),
        ({"share": 0.5, "moved": 1.0, "apart": 1.3, "turned": 1.351}, "another change"),
        ({"share": 2.349, "moved": 2.4, "apart": 1.5}, "the update twice"),
        ({"share": 2.351, "moved": 2.4, "apart": 1.5}, "in another scale"),
    ],
)
def test_what_rounding_blurs_is_allowed_for(row, fault):
    finding = judged({"rounding": 0.5, "elements": 144, **row})
    assert fault in finding.measured


def test_a_tensor_of_no_elements_or_no_update_has_no_fault():
    assert judged({"elements": 0}).status is Status.PASS
    assert judged({"norm": 0.0, "share": 0.0, "moved": 0.0, "apart": 1.0}).status is Status.PASS


ABSENT = {"share": 0.0, "moved": 0.0, "apart": 1.0}
TWICE = {"share": 2.0, "moved": 2.0, "apart": 1.0}
SCALED = {"share": 0.5, "moved": 0.5, "apart": 0.5}
OTHER = {"share": 0.2, "moved": 1.0, "apart": 1.3}


@pytest.mark.parametrize(
    ("rows", "weights", "advice"),
    [
        ([ABSENT, ABSENT], {}, "the product is the base; save what merge_and_unload returns"),
        ([ABSENT, {}], {}, "merge again with `tunemath merge BASE ADAPTER`"),
        ([ABSENT, TWICE], {}, "merge into the base itself"),
        ([SCALED, TWICE], {}, "merge into the base itself"),
        ([SCALED, ABSENT], {}, "compare α, r and rslora"),
        ([SCALED, OTHER], {}, "the product was made from another base"),
        ([ABSENT, ABSENT], {"differing": 1}, "the product was made from another base"),
        ([{}, {}], {"lacking": ["a"]}, "merge again with `tunemath merge BASE ADAPTER`"),
        ([{}, {}], {}, ""),
    ],
)
def test_the_advice_fits_the_fault(rows, weights, advice):
    finding = judged(*rows, **weights)
    assert finding.action.startswith(advice)
    assert bool(finding.action) == (finding.status is Status.FAIL) == bool(advice)


def test_what_is_wrong_is_counted_and_named():
    finding = judged(ABSENT, SCALED, SCALED, {})
    assert finding.measured == (
        "1 of 4 hold none of the update; 2 of 4 hold the update in another scale"
    )
    assert finding.where == "w0, w1 (× 0.5), w2 (× 0.5)"
    finding = judged({}, differing=2, differing_such_as=["x", "y"], lacking=["a", "b", "c"])
    assert finding.measured == "2 of 7 other tensors are not the base's; 3 tensors are missing"
    assert finding.where == "a, b, c …"
    finding = judged({}, differing=1, unchanged=0)
    assert finding.measured == "1 of 9 other tensors are not the base's"
    assert judged({}, {}).measured == (
        "2 changed tensors are base + ΔW, rounded once, and 7 are the base's; ‖ΔW‖ 3"
    )


def test_tensors_that_were_not_compared_are_no_fault():
    check = BY_ID[HELD]
    for weights in (None, {}, {"lacking": [], "by_tensor": [{"name": "w"}]}):
        assert check.run({"artefact": {"weights": weights}}).status is Status.NOT_RUN
    finding = check.run({"artefact": {"not_merged": "a prefix can't be merged"}})
    assert (finding.status, finding.measured) == (
        Status.PASS, "nothing is merged: a prefix can't be merged",
    )  # fmt: skip


# --- head and embedding: what the base, the update, the config and the file say


def heads(was: bool, should: bool, declared: bool, stored: bool, equal: bool | None) -> Status:
    head = {"was_tied": was, "should_be_tied": should, "declared_tied": declared,
            "head_stored": stored, "equal": equal}  # fmt: skip
    return BY_ID["head-and-embedding-as-declared"].run({"artefact": {"head": head}}).status


@pytest.mark.parametrize(
    ("facts", "sound"),
    [
        # tied before and after: one tensor, or two that are equal
        ((True, True, True, False, None), True),
        ((True, True, True, True, True), True),
        ((True, True, True, True, False), False),
        # tied before, and the update moves one alone: it must be declared apart and stored
        ((True, False, False, True, False), True),
        ((True, False, False, True, True), True),
        ((True, False, False, False, None), False),
        ((True, False, True, False, None), False),
        ((True, False, True, True, False), False),
        # tied before, moved alike, and yet declared apart: equal copies do
        ((True, True, False, True, True), True),
        ((True, True, False, True, False), False),
        ((True, True, False, False, None), False),
        # apart before: whatever is stored is the base's own form, but for a tie of two that differ
        ((False, False, False, True, False), True),
        ((False, False, False, False, None), True),
        ((False, False, True, True, True), True),
        ((False, False, True, True, False), False),
    ],
)
def test_head_and_embedding_are_what_the_update_left(facts, sound):
    assert heads(*facts) is (Status.PASS if sound else Status.FAIL)


@pytest.mark.parametrize(
    ("was", "should", "declared", "words"),
    [
        (True, True, True, "are tied"),
        (True, False, False, "are apart on purpose, since the update moves one only"),
        (False, False, False, "are apart"),
    ],
)
def test_the_state_of_head_and_embedding_is_said(was, should, declared, words):
    head = {"was_tied": was, "should_be_tied": should, "declared_tied": declared,
            "head_stored": True, "equal": True}  # fmt: skip
    finding = BY_ID["head-and-embedding-as-declared"].run({"artefact": {"head": head}})
    assert finding.measured == f"head and embedding {words}"


# --- rounding, tokens, stops, base


def test_each_form_of_the_product_is_held_against_the_limits():
    forms = {"float32": {"norm": 1.0, "share": 1.0, "error": 0.0},
             "gguf": {"norm": 1.0, "share": 0.3, "error": 0.5},
             "nf4": {"norm": 1.0, "share": 0.95, "error": 1.5}}  # fmt: skip
    artefact = {"weights": {"share": 1.0, "forms": forms},
                "forms": {"gguf": {"merged": {"kl": 0.25}}}}  # fmt: skip
    finding = BY_ID["update-survives-rounding"].run({"artefact": artefact})
    assert (finding.status, finding.where) == (Status.FAIL, "gguf, nf4")
    assert finding.measured == (
        "float32: 100.0% of ΔW is left, with an error of 0 ‖ΔW‖; "
        "gguf: 30.0% of ΔW is left, with an error of 0.5 ‖ΔW‖, KL 0.25 nats; "
        "nf4: 95.0% of ΔW is left, with an error of 1.5 ‖ΔW‖"
    )
    assert finding.threshold == "at least 90%, and an error below ‖ΔW‖"


def test_tokens_without_a_row_are_counted_once():
    tokens = {"added": [7, 8, 9], "untrained": [8, 7], "beyond": [8, 9]}
    finding = BY_ID["new-tokens-saved"].run({"artefact": {"tokens": tokens}})
    assert finding.measured == "3 tokens are new, 3 of them without a trained row"
    assert finding.where == "7, 8, 9"


def test_the_missing_stop_is_named():
    stop = {"trained": [2, 5], "stops": [2]}
    finding = BY_ID["stops-as-trained"].run({"artefact": {"stop": stop}})
    assert finding.measured == "answers end with 2, 5; generation stops at 2"
    assert finding.action == "add 5 to eos_token_id"


@pytest.mark.parametrize("check", PRODUCT_CHECKS, ids=lambda check: check.id)
def test_an_artefact_without_a_measurement_never_passes(check):
    assert check.run({"artefact": {}}).status in (Status.NOT_RUN, Status.INSUFFICIENT_EVIDENCE)
