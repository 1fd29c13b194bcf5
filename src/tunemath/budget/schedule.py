"""Optimizer steps and the learning rate at each of them, as transformers' Trainer takes them."""

from __future__ import annotations

import math

import numpy as np

from tunemath.arrays import positive
from tunemath.errors import ContractError

__all__ = ["learning_rates", "plan_steps", "warmup_steps"]

_MOST_STEPS = 10_000_000
_SCHEDULES = ("cosine", "linear", "constant", "constant_with_warmup")


def plan_steps(rows: int, batch_size: int, epochs: int) -> int:
    """Return the optimizer steps of a run.

    Let n be rows, b the batch size and e epochs: ``⌈e n / b⌉``. Epochs follow each other in one
    stream, so every batch is full but the last, and every row is seen exactly e times. Raises
    `ContractError` for more than 10 million, each of which would have a learning rate written down.

    >>> plan_steps(rows=450, batch_size=16, epochs=2)
    57
    """
    rows, batch_size, epochs = positive(rows=rows, batch_size=batch_size, epochs=epochs)
    steps = -(-epochs * rows // batch_size)
    if steps > _MOST_STEPS:
        raise ContractError(
            f"{epochs:,} epochs of {rows:,} rows in batches of {batch_size:,} are {steps:,} steps; "
            f"at most {_MOST_STEPS:,}: lower budget.epochs, or raise budget.batch_size"
        )
    return steps


def warmup_steps(steps: int, ratio: float) -> int:
    """Return the steps in which the rate rises: ``⌈steps · ratio⌉``, as TrainingArguments rounds.

    ``ratio`` from 0 up to, but not including, 1.

    >>> warmup_steps(58, 0.05)
    3
    """
    (steps,) = positive(steps=steps)
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio is {ratio!r}; expected a share from 0 up to, not including, 1")
    return math.ceil(steps * ratio)


def learning_rates(steps: int, warmup_steps: int, peak: float, schedule: str) -> np.ndarray:
    """Return the learning rate of every optimizer step.

    Let n be the steps, w the warm-up steps and k = 0 … n−1. For k < w the rate is ``peak · k/w``
    (so the first step of a warm-up has rate 0); after it, with x = (k − w)/(n − w):

    - cosine: ``peak · (1 + cos πx)/2``;
    - linear: ``peak · (1 − x)``;
    - constant (constant_with_warmup): ``peak``.

    Returns (n,) float64 rates. They never reach 0 at the end: step n would.

    >>> [round(float(rate), 6) for rate in learning_rates(5, 1, 1e-3, "linear")]
    [0.0, 0.001, 0.00075, 0.0005, 0.00025]
    """
    (steps,) = positive(steps=steps)
    if schedule not in _SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; expected one of {', '.join(_SCHEDULES)}")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps is {warmup_steps}; expected 0 or more")
    k = np.arange(steps, dtype=np.float64)
    rise = k / max(1, warmup_steps)
    x = (k - warmup_steps) / max(1, steps - warmup_steps)
    fall = {"cosine": 0.5 * (1 + np.cos(np.pi * x)), "linear": 1 - x}.get(schedule, np.ones(steps))
    return peak * np.where(k < warmup_steps, rise, fall)
