"""What can be verified about the objective."""

from __future__ import annotations

import math

from tunemath.findings import Check, Evidence, Outcome, Status

__all__ = ["CHECKS"]

_LN2 = 1e-3


def _micro_batch(evidence: Evidence) -> Outcome:
    """One batch of unlike lengths, whole and cut into single rows, gives one loss and gradient."""
    probe = evidence["training"]["micro_batch"]
    differences = probe["loss_difference"], probe["gradient_difference"]
    same = all(one <= probe["tolerance"] for one in differences)  # NaN is not
    return Outcome(
        Status.PASS if same else Status.FAIL,
        f"relative difference: loss {probe['loss_difference']:.2g}, "
        f"gradient {probe['gradient_difference']:.2g} ({probe['rows']} rows, cut into "
        f"{probe['cuts'][0]} and {probe['cuts'][1]})",
        f"at most {probe['tolerance']:g}",
        action="" if same else "the loss is a mean of means; divide sums by the global weight once",
    )


def _step0_loss(evidence: Evidence) -> Outcome:
    """DPO before its first step cannot tell the pairs apart: its loss is ln 2."""
    training = evidence["training"]
    loss = training["step0_loss"]
    if training["objective"] != "dpo":
        finite = math.isfinite(loss) and loss > 0
        return Outcome(
            Status.PASS if finite else Status.FAIL,
            f"{loss:.4f} nats a supervised token",
            "finite and above 0",
            action="" if finite else "nothing is supervised, or the weights are broken",
        )
    same = abs(loss - math.log(2)) <= _LN2
    return Outcome(
        Status.PASS if same else Status.FAIL,
        f"{loss:.6f} nats a pair; ln 2 is {math.log(2):.6f}",
        f"within {_LN2:g} of ln 2",
        action="" if same else "policy and reference differ at the start: dropout, dtype, weights",
    )


CHECKS: tuple[Check, ...] = (
    Check(
        "micro-batch-invariance",
        "objective",
        "backward",
        "Loss and gradient do not depend on how the batch is cut.",
        ("training",),
        _micro_batch,
        covers=(
            "ga-mean-of-means",
            "ga-loss-kwargs-mismatch",
            "agg-mode-token-mean-scale",
            "label-smoother-ignores-num-items",
        ),
    ),
    Check(
        "step0-loss",
        "objective",
        "forward",
        "The loss before the first step is what the objective implies (DPO: ln 2).",
        ("training",),
        _step0_loss,
        covers=("dpo-step0-not-ln2", "truncation-all-masked-loss-zero"),
    ),
)
