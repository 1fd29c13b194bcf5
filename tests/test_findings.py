"""What a check says of absent evidence and of its own fault, and how findings become a verdict."""

from __future__ import annotations

import pytest

from tunemath.findings import Check, Finding, Outcome, Status, Verdict, verdict

PASS, FAIL, ERROR = Status.PASS, Status.FAIL, Status.ERROR
UNDECIDED, NOT_RUN = Status.INSUFFICIENT_EVIDENCE, Status.NOT_RUN


def make_finding(status: Status, *, required: bool = True) -> Finding:
    check = Check(
        "x", "space", "static", "X.", ("plan",), lambda e: Outcome(status, "1", "1"), (), required
    )
    return check.run({"plan": {}})


@pytest.mark.parametrize(
    ("statuses", "expected", "code"),
    [
        ([PASS], "PASS", 0),
        ([PASS, PASS], "PASS", 0),
        ([PASS, FAIL], "FAIL", 1),
        ([PASS, ERROR], "FAIL", 1),
        ([UNDECIDED, FAIL], "FAIL", 1),
        ([NOT_RUN, ERROR], "FAIL", 1),
        ([PASS, UNDECIDED], "INSUFFICIENT_EVIDENCE", 3),
        ([PASS, NOT_RUN], "INSUFFICIENT_EVIDENCE", 3),
        ([NOT_RUN], "INSUFFICIENT_EVIDENCE", 3),
        ([], "INSUFFICIENT_EVIDENCE", 3),
    ],
)
def test_the_worst_required_finding_decides(statuses, expected, code):
    found = verdict([make_finding(status) for status in statuses])
    assert (found, found.exit_code) == (Verdict(expected), code)


@pytest.mark.parametrize("status", list(Status))
def test_a_finding_that_is_not_required_decides_nothing(status):
    others = [make_finding(PASS), make_finding(status, required=False)]
    assert verdict(others) is Verdict.PASS
    assert verdict(others[1:]) is Verdict.INSUFFICIENT_EVIDENCE


def test_a_judge_that_raises_is_an_error():
    def judge(evidence):
        raise ZeroDivisionError("ours")

    finding = Check("x", "space", "static", "X.", ("plan",), judge).run({"plan": {}})
    assert finding.status is Status.ERROR
    assert finding.measured == "ZeroDivisionError: ours"
    assert verdict([finding]).exit_code == 1
