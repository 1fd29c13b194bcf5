"""What can be verified about the data mask."""

from __future__ import annotations

from tunemath.findings import Check, Evidence, Outcome, Status
from tunemath.mask.certificate import MASK_VIOLATIONS

__all__ = ["CHECKS"]


def _answer_mask(evidence: Evidence) -> Outcome:
    mask, seen = evidence["mask"], evidence["training"]["rows_seen"]
    threshold = "0 violations in every row, and every row of the forward pass certified"
    wrong = {name: mask["violations"][name] for name in MASK_VIOLATIONS}
    found = ", ".join(f"{count} {name}" for name, count in wrong.items() if count)
    certified = (
        f"{seen['certified']} of {seen['expected']} rows that reached the model are certified"
        + (f", {seen['uncertified']} are not" if seen["uncertified"] else "")
    )
    measured = f"{found or '0 violations'} in {mask['rows']} rows; {certified}"
    if found:
        first = next((v for v in mask["first_violations"] if v["kind"] in wrong), None)
        where = f"{first['where']}: {first['detail']}" if first else "mask.json"
        action = "repair the rows named in mask.json, or the model's chat template, and run again"
        return Outcome(Status.FAIL, measured, threshold, where, action)
    if seen["uncertified"] or seen["certified"] != seen["expected"]:
        action = (
            "train on the certified rows: something between data and model changed or lost some"
        )
        return Outcome(Status.FAIL, measured, threshold, "training.json: rows_seen", action)
    return Outcome(Status.PASS, measured, threshold, "mask.json")


def _undeclared(evidence: Evidence) -> Outcome:
    mask = evidence["mask"]
    text, clock = (mask["violations"][name] for name in ("undeclared_text", "clock_dependent"))
    measured = f"{text} rows with text that the template adds, {clock} that change with the date"
    if not text and not clock:
        return Outcome(Status.PASS, measured, "0 rows", "mask.json")
    added = "; ".join(repr(entry["text"]) for entry in mask["undeclared"])
    action = "declare a system message in every row (`system`), as at inference"
    if clock:
        action += "; or use a template without the date"
    return Outcome(Status.FAIL, measured, "0 rows", f"the template adds {added}", action)


def _overlap(evidence: Evidence) -> Outcome:
    found = {name: part for name, part in evidence["mask"]["overlap"].items() if part}
    threshold = "0 evaluation items whose prompt is also a training prompt"
    if not found:
        action = "run `tunemath run`, which compares them with the evaluation's items"
        return Outcome(Status.NOT_RUN, "nothing: no items were compared", threshold, action=action)
    measured = ", ".join(f"{part['exact']} {name} items" for name, part in found.items())
    shared = [row for part in found.values() for row in part["rows"]]
    if not shared:
        return Outcome(Status.PASS, measured, threshold, "mask.json")
    where = ", ".join(f"{row['item']} = {row['train']}" for row in shared[:5])
    action = "remove these rows from the training file or from the evaluation's"
    return Outcome(Status.FAIL, measured, threshold, where, action)


def _stops(evidence: Evidence) -> Outcome:
    terminator = evidence["mask"]["terminator"]
    threshold = "the terminator that is trained on is an eos id of the model's configuration"
    measured = f"{terminator['text']!r} (id {terminator['id']})"
    if terminator["stops_generation"]:
        return Outcome(Status.PASS, measured, threshold, "generation_config.json")
    action = "add this id to eos_token_id in generation_config.json, or servers will not stop at it"
    return Outcome(Status.FAIL, measured, threshold, "generation_config.json", action)


CHECKS: tuple[Check, ...] = (
    Check(
        id="answer-mask",
        choice="mask",
        stage="static",
        claim="The loss counted the answers and their end-of-turn tokens, no prompt, no padding.",
        needs=("mask", "training"),
        judge=_answer_mask,
        covers=(
            "pad-eq-eos-masked",
            "double-bos",
            "bos-mid-sequence",
            "response-template-not-found",
            "response-template-eats-pad",
            "truncation-all-masked-loss-zero",
            "partial-truncation-cuts-eos",
            "eos-forced-after-truncation",
            "mask-dropped-by-liger",
            "mask-dropped-by-packing",
            "truncated-assistant-mask-zero",
            "user-labels-ignored",
            "prompt-length-wrong-after-api-change",
            "empty-think-supervised",
            "stale-dataset-cache",
            "preference-prompt-mismatch",
            "empty-completion-slice",
        ),
    ),
    Check(
        id="undeclared-text",
        choice="mask",
        stage="static",
        claim="The template adds no text to a row that the row does not declare, and no date.",
        needs=("mask",),
        judge=_undeclared,
        covers=("template-injects-content",),
        required=False,
    ),
    Check(
        id="train-eval-overlap",
        choice="mask",
        stage="static",
        claim="No evaluation item asks what a training row asks, word for word.",
        needs=("mask",),
        judge=_overlap,
        covers=("train-eval-overlap",),
    ),
    Check(
        id="terminator-stops",
        choice="mask",
        stage="static",
        claim="The end-of-turn token that is trained on ends generation.",
        needs=("mask",),
        judge=_stops,
        covers=("stop-token-not-in-generation-config",),
        required=False,
    ),
)
