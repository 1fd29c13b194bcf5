"""What can be verified about a model that an update was merged into, by whomever."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from tunemath.findings import Check, Evidence, Outcome, Status

__all__ = ["PRODUCT_CHECKS"]

_SPREAD, _OFF = 0.05, 0.05
_SHARE, _ERROR = 0.9, 1.0
_FAULTS = {
    "absent": "hold none of the update",
    "twice": "hold the update twice",
    "scaled": "hold the update in another scale",
    "turned": "hold the transposed update, as A and B swapped give it",
    "other": "hold another change than the update",
}


def _of_product(judge: Callable[[Mapping[str, Any]], Outcome]) -> Callable[[Evidence], Outcome]:
    """Judge the artefact; a method that can't be merged has no product to be wrong."""

    @wraps(judge)
    def outcome(evidence: Evidence) -> Outcome:
        artefact = evidence["artefact"]
        if "not_merged" in artefact:
            return Outcome(
                Status.PASS, f"nothing is merged: {artefact['not_merged']}", "no product to hold"
            )
        return judge(artefact)

    return outcome


def _unmeasured(what: str) -> Outcome:
    return Outcome(
        Status.NOT_RUN,
        f"nothing: {what} was not measured",
        "evidence present",
        action="run `tunemath verify BASE ADAPTER MERGED`",
    )


@_of_product
def _is_base_plus_update(artefact: Mapping[str, Any]) -> Outcome:
    """Each changed tensor holds the update once, rounded once; the others are the base's."""
    weights = artefact.get("weights") or {}
    rows = weights.get("by_tensor", ())
    if "lacking" not in weights or any("apart" not in row for row in rows):
        return _unmeasured("what the product's tensors hold")
    faults: dict[str, list[str]] = {}
    for row in rows:
        fault = _fault(row)
        if fault:
            faults.setdefault(fault, []).append(_named(row, fault))
    said = [f"{len(names)} of {len(rows)} {_FAULTS[fault]}" for fault, names in faults.items()]
    if weights["differing"]:
        of = weights["unchanged"] or weights["tensors"]
        said.append(f"{weights['differing']} of {of} other tensors are not the base's")
    if weights["lacking"]:
        said.append(f"{len(weights['lacking'])} tensors are missing")
    where = [*(each for names in faults.values() for each in names), *weights["lacking"]]
    where += weights["differing_such_as"]
    return Outcome(
        Status.FAIL if said else Status.PASS,
        "; ".join(said)
        or f"{len(rows)} changed tensors are base + ΔW, rounded once, and {weights['unchanged']} "
        f"are the base's; ‖ΔW‖ {weights['norm']:.3g}",
        f"⟨merged − base, ΔW⟩ / ‖ΔW‖² within {_OFF:g} of what rounding leaves, in every tensor",
        where=_some(where),
        action=_advice(faults, weights) if said else "",
    )


def _fault(row: Mapping[str, Any]) -> str:
    """Return what is wrong with a tensor, one of `_FAULTS`; empty if nothing is.

    Rounding leaves ΔW with noise of ``rounding`` times its norm. Another tool may round a few times
    more, which is the same noise again.
    """
    allowed = _SPREAD + 1.5 * row["rounding"]
    noise = _OFF + 3 * row["rounding"] / math.sqrt(max(1, row["elements"]))
    if not row["norm"]:
        return ""
    if row["apart"] <= allowed and abs(row["share"] - row["ideal"]) <= noise:
        return ""
    if abs(row["share"]) <= noise and row["moved"] <= allowed:
        return "absent"
    if abs(row.get("turned", 0.0) - 1) <= 2 * noise:
        return "turned"
    spread = math.sqrt(max(0.0, row["moved"] ** 2 - row["share"] ** 2))
    if spread > allowed * max(1.0, abs(row["share"])):
        return "other"
    return "twice" if abs(row["share"] - 2) <= 2 * noise else "scaled"


def _named(row: Mapping[str, Any], fault: str) -> str:
    return f"{row['name']} (× {row['share']:.3g})" if fault == "scaled" else str(row["name"])


def _advice(faults: Mapping[str, Sequence[str]], weights: Mapping[str, Any]) -> str:
    if weights["differing"] or "other" in faults:
        return "the product was made from another base or another adapter; merge again from both"
    if set(faults) == {"absent"} and len(faults["absent"]) == len(weights["by_tensor"]):
        return "the product is the base; save what merge_and_unload returns, not the model before"
    if "twice" in faults:
        return "merge into the base itself, not into a product that has the update already"
    if "scaled" in faults:
        return "compare α, r and rslora of the tool that merged with adapter_config.json"
    return "merge again with `tunemath merge BASE ADAPTER`"


@_of_product
def _survives_rounding(artefact: Mapping[str, Any]) -> Outcome:
    """Of ΔW, most is left in the product's dtype, and more than rounding blurs."""
    weights = artefact.get("weights") or {}
    if "share" not in weights:
        return _unmeasured("what rounding left of the update")
    forms = weights.get("forms") or {"the product": weights}
    lost = {
        form: kept
        for form, kept in forms.items()
        if kept["norm"] and not (kept["share"] >= _SHARE and kept["error"] <= _ERROR)
    }
    costs = artefact.get("forms", {})
    return Outcome(
        Status.FAIL if lost else Status.PASS,
        "; ".join(
            f"{form}: {kept['share']:.1%} of ΔW is left, with an error of {kept['error']:.3g} ‖ΔW‖"
            + (f", KL {costs[form]['merged']['kl']:.2g} nats" if form in costs else "")
            for form, kept in forms.items()
        ),
        f"at least {_SHARE:.0%}, and an error below ‖ΔW‖",
        where=", ".join(lost),
        action="keep the adapter beside a base in that format, or merge into a wider one"
        if lost
        else "",
    )


@_of_product
def _head_as_declared(artefact: Mapping[str, Any]) -> Outcome:
    """Head and embedding are tied or apart as the update left them, in config and weights."""
    head = artefact.get("head")
    if head is None:
        return _unmeasured("whether head and embedding are one")
    wrong = []
    should, declared, equal = head["should_be_tied"], head["declared_tied"], head["equal"]
    if head["was_tied"] and declared and not should:
        wrong.append("the update moves head or embedding alone, and the product declares them tied")
    if declared and equal is False:
        wrong.append("the product declares them tied and stores two that differ")
    if head["was_tied"] and not declared and not head["head_stored"]:
        wrong.append("the product declares them apart and stores no head")
    if should and not declared and equal is False:
        wrong.append("the update moves both alike, and the product has two that differ")
    state = "tied" if declared else "apart"
    if head["was_tied"] and not should:
        state += " on purpose, since the update moves one only"
    return Outcome(
        Status.FAIL if wrong else Status.PASS,
        "; ".join(wrong) or f"head and embedding are {state}",
        "config.json and weights agree with what the update moved",
        where="tie_word_embeddings and the head's weight" if wrong else "",
        action="merge again with `tunemath merge`, which writes both and says so" if wrong else "",
    )


@_of_product
def _base_as_trained(artefact: Mapping[str, Any]) -> Outcome:
    """The base's hash is the one that the update's record has."""
    base = artefact.get("base")
    if base is None:
        return _unmeasured("the base's hash")
    if base["trained_on"] is None:
        return Outcome(
            Status.INSUFFICIENT_EVIDENCE,
            "the update has no record of the base that it was trained on",
            "the base's SHA-256 beside the update",
            where="tunemath.json",
            action="ask who trained it for the base's revision",
        )
    same = base["trained_on"] == base["sha256"]
    return Outcome(
        Status.PASS if same else Status.FAIL,
        f"trained on {base['trained_on'][:12]}…, base {base['sha256'][:12]}…",
        "equal",
        where="" if same else base["id"],
        action="" if same else "use the base that it was trained on",
    )


@_of_product
def _new_tokens_saved(artefact: Mapping[str, Any]) -> Outcome:
    """Every token that the update's tokenizer adds has a trained row in the product."""
    tokens = artefact.get("tokens")
    if tokens is None:
        return _unmeasured("which tokens are new")
    wrong = sorted({*tokens["untrained"], *tokens["beyond"]})
    return Outcome(
        Status.FAIL if wrong else Status.PASS,
        f"{len(tokens['added'])} tokens are new, {len(wrong)} of them without a trained row",
        "0",
        where=_some([str(token) for token in wrong]),
        action="train again with modules_to_save or trainable_token_indices for the embedding"
        if wrong
        else "",
    )


@_of_product
def _stops_as_trained(artefact: Mapping[str, Any]) -> Outcome:
    """What training ended answers with also stops generation."""
    stop = artefact.get("stop") or {}
    if not stop.get("trained"):
        return Outcome(
            Status.INSUFFICIENT_EVIDENCE,
            "the update has no record of what its answers ended with",
            "the trained end tokens beside the update",
            where="tunemath.json",
            action="ask who trained it which token ends an answer",
        )
    missing = [token for token in stop["trained"] if token not in stop["stops"]]
    return Outcome(
        Status.FAIL if missing else Status.PASS,
        f"answers end with {_some(stop['trained'])}; generation stops at "
        f"{_some(stop['stops']) or 'nothing'}",
        "every trained end is a stop",
        where="generation_config.json eos_token_id" if missing else "",
        action=f"add {_some(missing)} to eos_token_id" if missing else "",
    )


def _some(values: Sequence[object]) -> str:
    return ", ".join(str(v) for v in values[:3]) + (" …" if len(values) > 3 else "")


PRODUCT_CHECKS: tuple[Check, ...] = (
    Check(
        "merged-is-base-plus-update",
        "space",
        "artefact",
        "Every merged tensor is base + ΔW, once and in its scale, and every other is the base's.",
        ("artefact",),
        _is_base_plus_update,
        covers=(
            "merge-noop",
            "adapter-applied-twice",
            "server-ignores-adapter-modules",
            "adapters-stacked-wrongly",
            "qlora-merge-wrong-base",
        ),
        required=False,
    ),
    Check(
        "update-survives-rounding",
        "space",
        "artefact",
        "Most of ΔW is left in the dtype of the merged weights.",
        ("artefact",),
        _survives_rounding,
        covers=("bf16-merge-rounding", "merge-into-4bit"),
        required=False,
    ),
    Check(
        "head-and-embedding-as-declared",
        "space",
        "artefact",
        "Head and embedding of the merged model are tied or apart as the update left them.",
        ("artefact",),
        _head_as_declared,
        covers=("tied-embeddings-diverge",),
    ),
    Check(
        "base-is-the-one-trained-on",
        "space",
        "artefact",
        "The base's weights are those that the update was trained on.",
        ("artefact",),
        _base_as_trained,
        covers=(
            "adapter-on-other-base-revision",
            "adapters-stacked-wrongly",
            "adapter-applied-twice",
            "qlora-merge-wrong-base",
        ),
        required=False,
    ),
    Check(
        "new-tokens-saved",
        "space",
        "artefact",
        "Every token that was added has a trained row in the merged model.",
        ("artefact",),
        _new_tokens_saved,
        covers=("new-tokens-not-saved", "merge-model-tokenizer-mismatch"),
        required=False,
    ),
    Check(
        "stops-as-trained",
        "space",
        "artefact",
        "The tokens that training ended answers with stop generation of the merged model.",
        ("artefact",),
        _stops_as_trained,
        covers=("stop-token-not-in-generation-config",),
        required=False,
    ),
)
