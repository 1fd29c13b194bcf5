"""What can be verified about the optimizer budget."""

from __future__ import annotations

import math

from tunemath.findings import Check, Evidence, Outcome, Status

__all__ = ["CHECKS"]


def _as_planned(evidence: Evidence) -> Outcome:
    """Steps, rows and learning rates that were logged are those that were planned."""
    training, plan = evidence["training"], evidence["plan"]
    rates = plan["schedule"]["learning_rates"]
    logged = {entry["step"]: entry["learning_rate"] for entry in training["log"]}
    off = [
        step
        for step, rate in enumerate(rates, start=1)
        if not math.isclose(logged.get(step, math.nan), rate, rel_tol=1e-6, abs_tol=1e-15)
    ]
    miscounted = training["rows_seen"]["miscounted"]
    steps = (training["steps"], plan["schedule"]["steps"])
    held = not off and miscounted == 0 and steps[0] == steps[1]
    return Outcome(
        Status.PASS if held else Status.FAIL,
        f"{steps[0]} steps of {steps[1]} planned; {len(off)} learning rates off; "
        f"{miscounted} rows seen too often or too seldom",
        "every figure as planned",
        where=f"step {off[0]}" if off else "",
        action="" if held else "compare plan.json schedule with training.json log",
    )


def _finite(evidence: Evidence) -> Outcome:
    """Every logged loss and gradient norm is a finite number, and no loss is exactly zero."""
    log = evidence["training"]["log"]
    bad = [
        entry["step"]
        for entry in log
        if not (math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"]))
        or entry["loss"] == 0.0
    ]
    return Outcome(
        Status.FAIL if bad or not log else Status.PASS,
        f"{len(bad)} of {len(log)} steps with a loss that is zero or not finite",
        "0",
        where=f"step {bad[0]}" if bad else "",
        action="lower the learning rate, or look at the rows of that step"
        if bad
        else ("" if log else "train again: no step was logged"),
    )


CHECKS: tuple[Check, ...] = (
    Check(
        "budget-as-planned",
        "budget",
        "run",
        "Steps, learning rates and rows seen are those that were planned.",
        ("plan", "training"),
        _as_planned,
        covers=(
            "scheduler-times-num-processes",
            "warmup-wrong-count",
            "step-count-wrong",
            "tail-accumulation-leak",
            "streaming-duplicates-across-ranks",
        ),
    ),
    Check(
        "finite-every-step",
        "budget",
        "run",
        "Loss and gradient norm were finite at every step.",
        ("training",),
        _finite,
        covers=("nan-hidden-by-log-filter", "truncation-all-masked-loss-zero"),
    ),
)
