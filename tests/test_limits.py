"""Numbers of a contract: the last that is taken, and the first beyond it that is refused."""

from __future__ import annotations

import pytest

from tunemath.contract import FineTune
from tunemath.errors import ContractError

LAST = {
    "budget.epochs": 10_000,
    "budget.batch_size": 1_000_000,
    "budget.micro_batch_size": 1_000_000,
    "budget.save_every": 10_000_000,
    "evaluation.few_shot": 10_000,
    "evaluation.max_new_tokens": 1_000_000,
    "evaluation.batch_size": 1_000_000,
    "evaluation.bootstraps": 1_000_000,
    "mask.max_length": 10_000_000,
    "space.rank": 65_536,
}
FLOATS = (
    "budget.learning_rate",
    "budget.weight_decay",
    "budget.max_grad_norm",
    "budget.warmup_ratio",
    "space.alpha",
    "space.dropout",
    "evaluation.retention_margin",
)


@pytest.mark.parametrize(("field", "last"), LAST.items())
def test_the_last_is_taken_and_the_next_refused(tiny_job, field, last):
    also = ["budget.batch_size=1000000"] if field == "budget.micro_batch_size" else []
    if field == "budget.batch_size":
        also = ["budget.micro_batch_size=1000000"]
    FineTune.load(tiny_job, [*also, f"{field}={last}"])
    for beyond in (last + 1, 10**20):
        with pytest.raises(ContractError, match=rf"{field}.* less than or equal to {last}"):
            FineTune.load(tiny_job, [*also, f"{field}={beyond}"])


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1.0e+999"])
@pytest.mark.parametrize("field", FLOATS)
def test_what_is_no_finite_number_is_refused(tiny_job, field, value):
    with pytest.raises(ContractError, match=field):
        FineTune.load(tiny_job, [f"{field}={value}"])
