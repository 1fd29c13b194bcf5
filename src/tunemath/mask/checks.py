"""What can be verified about the data mask."""

from __future__ import annotations

from collections.abc import Mapping

from tunemath.findings import Check, Evidence, Outcome, Status
from tunemath.mask.certificate import MASK_VIOLATIONS

__all__ = ["CHECKS"]


def _answer_mask(evidence: Evidence) -> Outcome:
    """Hold every row's mask, then the rows that reached the model, against the certificate.

    A violation fails before anything is trained; that none is there is not yet a PASS.
    """
    mask = evidence["mask"]
    threshold = "0 violations in every row, and every row of the forward pass certified"
    wrong = {name: mask["violations"][name] for name in MASK_VIOLATIONS}
    found = ", ".join(f"{count} {name}" for name, count in wrong.items() if count)
    measured = f"{found or '0 violations'} in {mask['rows']} rows"
    training = evidence.get("training")
    if training is not None:
        measured += f"; {_certified(training['rows_seen'])}"
    if found:
        first = next((v for v in mask["first_violations"] if v["kind"] in wrong), None)
        where = f"{first['where']}: {first['detail']}" if first else "mask.json"
        action = "repair the rows named in mask.json, or the model's chat template, and run again"
        return Outcome(Status.FAIL, measured, threshold, where, action)
    if training is None:
        action = "run the stage that writes training"
        return Outcome(Status.NOT_RUN, f"{measured}; no training", threshold, action=action)
    seen = training["rows_seen"]
    if seen["uncertified"] or seen["certified"] != seen["expected"]:
        action = (
            "train on the certified rows: something between data and model changed or lost some"
        )
        return Outcome(Status.FAIL, measured, threshold, "training.json: rows_seen", action)
    return Outcome(Status.PASS, measured, threshold, "mask.json")


def _certified(seen: Mapping[str, int]) -> str:
    others = f", {seen['uncertified']} are not" if seen["uncertified"] else ""
    return (
        f"{seen['certified']} of {seen['expected']} rows that reached the model are certified"
        + others
    )


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
    measured = ", ".join(
        f"{part['exact']} {name} items" + _elsewhere(part) for name, part in found.items()
    )
    shared = [row for part in found.values() for row in part["rows"]]
    if not shared:
        return Outcome(Status.PASS, measured, threshold, "mask.json")
    where = ", ".join(f"{row['item']} = {row['train']}" for row in shared[:5])
    action = "remove these rows from the training file or from the evaluation's"
    return Outcome(Status.FAIL, measured, threshold, where, action)


def _elsewhere(part: Mapping[str, list[str]]) -> str:
    """Say how many items stand in training under another system message and answer."""
    count = len(part.get("other_system", ()))
    return f" ({count} more under another system message, with another answer)" if count else ""


def _stops(evidence: Evidence) -> Outcome:
    terminator = evidence["mask"]["terminator"]
    threshold = "the terminator that is trained on is an eos id of the model's configuration"
    measured = f"{terminator['text']!r} (id {terminator['id']})"
    if terminator["stops_generation"]:
        return Outcome(Status.PASS, measured, threshold, "generation_config.json")
    action = "add this id to eos_token_id in generation_config.json, or servers will not stop at it"
    return Outcome(Status.FAIL, measured, threshold, "generation_config.json", action)


def _positions(evidence: Evidence) -> Outcome:
    """Hold the longest row and item against the positions that the model was trained for."""
    positions = evidence["plan"].get("positions")
    threshold = "0 rows and items beyond the positions that the model was trained for"
    if positions is None:
        action = "run `tunemath plan` again"
        return Outcome(
            Status.NOT_RUN, "nothing: plan.json has no positions", threshold, action=action
        )
    limit, lengths = positions["limit"], positions["lengths"]
    longest = max(each["longest"] for each in lengths.values())
    if limit is None:
        return Outcome(Status.PASS, f"at most {longest:,} tokens; no limit", threshold, "plan.json")
    measured = f"at most {longest:,} of {limit:,} positions"
    beyond = {name: each for name, each in lengths.items() if each["beyond"]}
    if not beyond:
        return Outcome(Status.PASS, measured, threshold, "plan.json")
    counts = ", ".join(f"{each['beyond']} {name}" for name, each in beyond.items())
    where = ", ".join(place for each in beyond.values() for place in each["first_beyond"])
    action = (
        "shorten them; or extend the model's positions (rope_scaling in its config.json) on purpose"
    )
    return Outcome(Status.FAIL, f"{counts} beyond; {measured}", threshold, where, action)


CHECKS: tuple[Check, ...] = (
    Check(
        id="answer-mask",
        choice="mask",
        stage="static",
        claim="The loss counted the answers and their end-of-turn tokens, no prompt, no padding.",
        needs=("mask",),
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
    Check(
        id="within-positions",
        choice="mask",
        stage="static",
        claim="No row and no item is longer than what the model was trained for.",
        needs=("plan",),
        judge=_positions,
        required=False,
    ),
)
