from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from tunemath.budget import learning_rates, plan_steps, warmup_steps
from tunemath.errors import ShapeError


@given(st.integers(1, 500), st.integers(1, 64), st.integers(1, 4))
def test_steps_are_those_of_a_data_loader(rows, batch_size, epochs):
    stream = list(range(rows)) * epochs
    loader = torch.utils.data.DataLoader(stream, batch_size=batch_size)  # type: ignore[arg-type]
    assert plan_steps(rows, batch_size, epochs) == len(loader)


@pytest.mark.parametrize("steps", [1, 2, 10, 58, 100, 1000])
@pytest.mark.parametrize("ratio", [0.03, 0.05, 0.1, 0.5, 0.9])
def test_warmup_is_that_of_training_arguments(steps, ratio, tmp_path):
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), warmup_steps=ratio, report_to=[], use_cpu=True
    )
    assert warmup_steps(steps, ratio) == arguments.get_warmup_steps(steps)
    assert warmup_steps(steps, 0.0) == 0


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant_with_warmup"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (7, 0), (60, 3), (60, 60), (20, 30)])
def test_every_rate_is_that_of_transformers(schedule, steps, warmup):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2e-4)
    scheduler = transformers.get_scheduler(schedule, optimizer, warmup, steps)
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(
        learning_rates(steps, warmup, 2e-4, schedule), expected, rtol=1e-13, atol=1e-22
    )


def test_constant_is_the_record_s_name_for_constant_with_warmup():
    both = [learning_rates(9, 2, 1.0, name) for name in ("constant", "constant_with_warmup")]
    assert both[0].tolist() == both[1].tolist() == [0, 0.5, 1, 1, 1, 1, 1, 1, 1]


@given(st.integers(1, 200), st.integers(0, 50), st.sampled_from(["cosine", "linear", "constant"]))
def test_rates_lie_between_zero_and_the_peak(steps, warmup, schedule):
    rates = learning_rates(steps, warmup, 3e-4, schedule)
    assert rates.shape == (steps,)
    assert rates.min() >= 0
    assert rates.max() <= 3e-4
    assert np.all(np.diff(rates[warmup:]) <= 0)
    assert math.isclose(rates[-1], 0) == (warmup >= 1 and steps == 1)


def test_the_ends_of_what_is_allowed():
    assert warmup_steps(10, 0.0) == 0
    assert warmup_steps(10, math.nextafter(1, 0)) == 10
    assert plan_steps(1, 1, 1) == 1
    assert learning_rates(1, 0, 1.0, "cosine").tolist() == [1]
    for ratio in (1.0, -1e-9, math.nan):
        with pytest.raises(ValueError, match="expected a share from 0 up to, not including, 1"):
            warmup_steps(10, ratio)
    with pytest.raises(ValueError, match="warmup_steps is -1; expected 0 or more"):
        learning_rates(10, -1, 1.0, "linear")


def test_the_first_and_last_step_of_a_warm_up_by_hand():
    # rises over steps 1 to 4 from 0; step 5 is the first at the peak, and falls from there
    assert learning_rates(9, 4, 1.0, "linear").tolist() == [0, 0.25, 0.5, 0.75, 1, 0.8, 0.6, 0.4,
                                                            pytest.approx(0.2)]  # fmt: skip
    assert learning_rates(4, 4, 1.0, "linear").tolist() == [0, 0.25, 0.5, 0.75]
    assert learning_rates(5, 4, 1.0, "linear").tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_bad_input():
    with pytest.raises(ShapeError, match="batch_size is 0"):
        plan_steps(10, 0, 1)
    with pytest.raises(ValueError, match=r"ratio is 1\.5"):
        warmup_steps(10, 1.5)
    with pytest.raises(ValueError, match="expected one of cosine, linear"):
        learning_rates(10, 1, 1e-3, "cosin")
