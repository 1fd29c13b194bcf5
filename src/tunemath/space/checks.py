"""What can be verified about the update space."""

from __future__ import annotations

import math

from tunemath.findings import Check, Evidence, Outcome, Status
from tunemath.space.product_checks import PRODUCT_CHECKS

__all__ = ["CHECKS"]

_STILL = 1e-6


def _targets_matched(evidence: Evidence) -> Outcome:
    """Hold the targets asked for against those that met something in the model."""
    coverage = evidence["plan"]["parameters"].get("coverage")
    if coverage is None:
        return _not_planned()
    lost = coverage["unmatched"]
    return Outcome(
        Status.FAIL if lost else Status.PASS,
        f"{len(lost)} targets match nothing in the model",
        "0",
        where=", ".join(lost[:3]) + (" …" if len(lost) > 3 else ""),
        action="correct these names in space.targets, or leave them out" if lost else "",
    )


def _targets_reach(evidence: Evidence) -> Outcome:
    """Hold what the method reaches, by layer and block, against what its targets suggest."""
    coverage = evidence["plan"]["parameters"].get("coverage")
    if coverage is None:
        return _not_planned()
    findings = coverage["findings"]
    return Outcome(
        Status.FAIL if findings else Status.PASS,
        "; ".join(findings) or "no layer and no block that the targets suggest is passed over",
        "90 % of the layers, half of the feed-forward weights where they are targets",
        where="plan.json parameters.coverage" if findings else "",
        action="name the blocks that are passed over, or accept that they stay as they are"
        if findings
        else "",
    )


def _not_planned() -> Outcome:
    return Outcome(
        Status.NOT_RUN,
        "nothing: plan.json has no parameters.coverage",
        "evidence present",
        action="run `tunemath plan` again",
    )


def _trainable_count(evidence: Evidence) -> Outcome:
    """Hold the closed form's count against the live tensors and, of its methods, PEFT's figure."""
    count = evidence["training"]["trainable"]
    planned = evidence["plan"]["parameters"]["trainable"]
    peft = count.get("peft")
    same = planned == count["planned"] == count["live"] and peft in (None, planned)
    by_peft = "" if peft is None else f", PEFT {peft:,}"
    return Outcome(
        Status.PASS if same else Status.FAIL,
        f"planned {planned:,}, live {count['live']:,}{by_peft} parameters",
        "all equal",
        where="" if same else "plan.json parameters.by_target against the trained tensors",
        action="" if same else "look at space.targets: a layer was missed or matched twice",
    )


def _step0_identity(evidence: Evidence) -> Outcome:
    """An update at initialisation moves no logit; of a prefix or prompt it is said how far.

    Switched off, the model is the base as it was loaded.
    """
    probe = evidence["training"]["identity"]
    off = probe.get("switched_off", 0.0)
    if not off <= _STILL:
        return Outcome(
            Status.FAIL,
            f"switched off, the update leaves the base with a logit {off:.2g} from where it was",
            f"at most {_STILL:g}",
            action="the initialisation changes the base; start the last factor at 0",
        )
    if probe.get("moves_by_nature"):
        return Outcome(
            Status.PASS if math.isfinite(probe["kl"]) else Status.FAIL,
            f"virtual tokens move the base before training: KL(tuned ‖ base) {probe['kl']:.3g} "
            f"nats, largest logit difference {probe['max_logit_difference']:.2g} over "
            f"{probe['positions']} positions",
            "finite, and recorded",
        )
    still = probe["max_logit_difference"] <= _STILL
    return Outcome(
        Status.PASS if still else Status.FAIL,
        f"largest logit difference {probe['max_logit_difference']:.2g} "
        f"over {probe['positions']} positions",
        f"at most {_STILL:g}",
        action="" if still else "the initialisation changes the base; start the last factor at 0",
    )


def _intended_tensors(evidence: Evidence) -> Outcome:
    """Every trainable tensor moved; no frozen one did; none appeared or vanished."""
    tensors = evidence["training"]["tensors"]
    wrong = [*tensors["unmoved"], *tensors["frozen_changed"], *tensors["names_changed"]]
    return Outcome(
        Status.FAIL if wrong else Status.PASS,
        f"{tensors['moved']} of {tensors['trainable']} trainable tensors moved, "
        f"{len(tensors['frozen_changed'])} of {tensors['frozen']} frozen ones changed",
        "all trainable moved, no frozen one changed",
        where=", ".join(wrong[:3]) + (" …" if len(wrong) > 3 else ""),
        action="a tensor without a gradient is cut off from the loss; "
        "a frozen one that changed was not frozen"
        if wrong
        else "",
    )


def _deployable(evidence: Evidence) -> Outcome:
    """The trained, the reloaded and, where it can be, the merged and reloaded model are one."""
    artefact = evidence["artefact"]
    pairs = {key: value for key, value in artefact.items() if key.startswith("adapter_vs_")}
    # NaN is the worst of all, but larger than nothing.
    apart = {key: pair["max_logit_difference"] for key, pair in pairs.items()}
    worst = max(apart, key=lambda key: (math.isnan(apart[key]), apart[key]))
    largest = apart[worst]
    same = largest <= artefact["tolerance"]
    unmerged = f"; not merged: {artefact['not_merged']}" if "not_merged" in artefact else ""
    return Outcome(
        Status.PASS if same else Status.FAIL,
        f"largest logit difference {largest:.2g} ({worst.replace('_', ' ')}), "
        f"KL {pairs[worst]['kl']:.2g} nats, over {artefact['positions']} positions{unmerged}",
        f"at most {artefact['tolerance']:g} in any logit",
        where="" if same else worst,
        action="" if same else "do not deploy that form; compare dtypes and the update's scale",
    )


CHECKS: tuple[Check, ...] = (
    Check(
        "targets-matched",
        "space",
        "static",
        "Every target that the contract names is in the model.",
        ("plan",),
        _targets_matched,
        covers=("target-modules-partial-match", "target-modules-none-match"),
    ),
    Check(
        "targets-reach",
        "space",
        "static",
        "The method reaches the layers and blocks that its targets suggest.",
        ("plan",),
        _targets_reach,
        covers=("target-modules-partial-match", "moe-experts-not-adapted"),
        required=False,
    ),
    Check(
        "trainable-count",
        "space",
        "forward",
        "The number of trainable parameters is the one that the method implies.",
        ("plan", "training"),
        _trainable_count,
        covers=(
            "target-modules-partial-match",
            "target-modules-none-match",
            "resume-unfreezes-base",
        ),
    ),
    Check(
        "step0-identity",
        "space",
        "forward",
        "The update at initialisation moves no logit; a prefix or prompt, by what is recorded.",
        ("training",),
        _step0_identity,
        covers=("init-changes-base",),
    ),
    Check(
        "only-intended-tensors-moved",
        "space",
        "run",
        "Every tensor that should have moved did, and no other.",
        ("training",),
        _intended_tensors,
        covers=(
            "adapter-on-head-never-trained",
            "loaded-adapter-not-trainable",
            "checkpointing-frozen-inputs",
            "fsdp-blocks-lora-grads",
            "optimizer-holds-stale-params",
            "resume-unfreezes-base",
            "ref-updates-with-policy",
        ),
    ),
    Check(
        "adapter-merged-reloaded",
        "space",
        "artefact",
        "The tuned model, reloaded and, where it can be, merged and reloaded has the same logits.",
        ("artefact",),
        _deployable,
        covers=(
            "bf16-merge-rounding",
            "merge-noop",
            "tied-embeddings-diverge",
            "adapter-applied-twice",
        ),
    ),
    *PRODUCT_CHECKS,
)
