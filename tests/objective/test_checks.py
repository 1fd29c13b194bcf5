"""What the objective's checks and its record make of numbers that are none."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from tunemath.findings import Status
from tunemath.objective import Objective
from tunemath.objective.checks import CHECKS

MICRO_BATCH = next(check for check in CHECKS if check.id == "micro-batch-invariance")


@pytest.mark.parametrize("name", ["loss_difference", "gradient_difference"])
def test_a_difference_that_is_no_number_is_no_pass(name):
    probe = {"loss_difference": 0.0, "gradient_difference": 0.0, "tolerance": 1e-3, "rows": 4}
    probe["cuts"] = (4, 1)
    outcomes = [
        MICRO_BATCH.run({"training": {"micro_batch": probe | change}})
        for change in ({}, {name: math.nan})
    ]
    assert [outcome.status for outcome in outcomes] == [Status.PASS, Status.FAIL]


@pytest.mark.parametrize("beta", [math.inf, math.nan, 0.0, -0.1])
def test_beta_is_a_number_above_zero(beta):
    with pytest.raises(ValidationError, match="beta"):
        Objective(kind="dpo", beta=beta)
