"""10. A checklist that runs."""

from __future__ import annotations

import numpy as np

from tunemath.course.exercise import Case, Mistake, Part

__all__ = ["PARTS"]

_CHECKS = ("mask", "count", "baselines", "retention")


def _mask(e):
    kinds, mask = e["kinds"], e["mask"]
    if len(kinds) != len(mask):
        return "FAIL"
    for kind, counts in zip(kinds, mask, strict=True):
        if bool(counts) != (kind in ("answer", "end")):
            return "FAIL"
    return "PASS" if any(mask) else "FAIL"


def _count(e):
    return "PASS" if e["trainable"] == e["planned"] else "FAIL"


def _baselines(e):
    arms = e["items"]
    if not {"base", "prompted", "tuned"} <= set(arms) or not arms["tuned"]:
        return "FAIL"
    return "PASS" if arms["base"] == arms["prompted"] == arms["tuned"] else "FAIL"


def _retention(e):
    before, after = e["retention"]
    return "PASS" if after >= before - e["allowed_drop"] else "FAIL"


_NEEDS = {
    "mask": ("kinds", "mask"),
    "count": ("trainable", "planned"),
    "baselines": ("items",),
    "retention": ("retention", "allowed_drop"),
}
_JUDGES = {"mask": _mask, "count": _count, "baselines": _baselines, "retention": _retention}


def _checklist(evidence, missing="NOT_RUN", **judges):
    return {
        name: {**_JUDGES, **judges}[name](evidence)
        if all(evidence.get(need) is not None for need in _NEEDS[name])
        else missing
        for name in _CHECKS
    }


def _verdict(statuses):
    if not statuses:
        return "INSUFFICIENT_EVIDENCE"
    if any(status == "FAIL" for status in statuses.values()):
        return "FAIL"
    if all(status == "PASS" for status in statuses.values()):
        return "PASS"
    return "INSUFFICIENT_EVIDENCE"


_GOOD = {
    "kinds": ["prompt", "prompt", "answer", "end", "padding"],
    "mask": [0, 0, 1, 1, 0],
    "trainable": 2_442_240,
    "planned": 2_442_240,
    "items": {"base": ["a", "b"], "prompted": ["a", "b"], "tuned": ["a", "b"]},
    "retention": [0.83, 0.82],
    "allowed_drop": 0.03,
}
_ENDLESS = {**_GOOD, "mask": [0, 0, 1, 0, 0]}
_OTHER_ITEMS = {"base": ["a", "b"], "prompted": ["a", "b"], "tuned": ["a", "c"]}


def _without(*names):
    return {key: value for key, value in _GOOD.items() if key not in names}


def _draw(rng: np.random.Generator, size: int) -> Case:
    prompt, answer, padding = (int(rng.integers(1, 2 + size)) for _ in range(3))
    kinds = ["prompt"] * prompt + ["answer"] * answer + ["end"] + ["padding"] * padding
    mask = [int(kind in ("answer", "end")) for kind in kinds]
    fault = size % 4
    if fault == 1:
        mask[int(rng.choice([0, prompt - 1, len(kinds) - 1]))] = 1
    if fault == 2:
        mask[prompt + answer] = 0
    planned = int(rng.integers(10, 100))
    ids = [f"item-{i}" for i in range(size + 1)]
    evidence = {
        "kinds": kinds,
        "mask": mask,
        "trainable": planned + int(rng.integers(-1, 2)),
        "planned": planned,
        "items": {
            "base": ids,
            "prompted": ids if size % 3 else ids[::-1] if size > 3 else ids[:-1],
            "tuned": ids,
        },
        "retention": [float(x) for x in rng.uniform(0.6, 0.9, 2).round(3)],
        "allowed_drop": 0.05,
    }
    for name in ("items", "retention"):
        if rng.random() < 0.2:
            evidence[name] = None
    return Case((evidence,))


def _draw_statuses(rng: np.random.Generator, size: int) -> Case:
    kinds = ["PASS", "PASS", "NOT_RUN", "FAIL"][: 2 + size % 3]
    return Case(({f"check-{i}": str(rng.choice(kinds)) for i in range(size + 1)},))


def _lists(**judges):
    return lambda evidence: _checklist(evidence, **judges)


PARTS = (
    Part(
        "checklist",
        _checklist,
        Case((_GOOD,)),
        dict.fromkeys(_CHECKS, "PASS"),
        _draw,
        (
            Mistake(
                "missing counts as passed",
                lambda evidence: _checklist(evidence, missing="PASS"),
                "Evidence that isn't there counts as passed. A check that could not run has shown "
                "nothing: NOT_RUN.",
            ),
            Mistake(
                "missing counts as failed",
                lambda evidence: _checklist(evidence, missing="FAIL"),
                "Evidence that isn't there counts as failed. Nothing was found to be wrong either: "
                "say NOT_RUN, so that a person knows what to run.",
            ),
            Mistake(
                "terminator not required",
                _lists(
                    mask=lambda e: (
                        "FAIL"
                        if any(
                            c and k in ("prompt", "padding")
                            for c, k in zip(e["mask"], e["kinds"], strict=False)
                        )
                        or not any(e["mask"])
                        else "PASS"
                    )
                ),
                "Only what must not be trained is looked at. All of the answer has to be "
                "trained, its end token too: a model whose end is masked never stops.",
            ),
            Mistake(
                "padding not looked at",
                _lists(
                    mask=lambda e: (
                        "FAIL"
                        if any(
                            bool(c) != (k in ("answer", "end"))
                            for c, k in zip(e["mask"], e["kinds"], strict=False)
                            if k != "padding"
                        )
                        else "PASS"
                    )
                ),
                "Padding is left out of the check: a mask that trains on it passes.",
            ),
            Mistake(
                "at most the plan",
                _lists(count=lambda e: "PASS" if e["trainable"] <= e["planned"] else "FAIL"),
                "A count below the plan passes: that is a layer which was missed. It has to be "
                "equal.",
            ),
            Mistake(
                "as many items",
                _lists(
                    baselines=lambda e: (
                        "PASS"
                        if {"base", "prompted", "tuned"} <= set(e["items"])
                        and len({len(ids) for ids in e["items"].values()}) == 1
                        and e["items"]["tuned"]
                        else "FAIL"
                    )
                ),
                "The arms are held to be comparable because they have as many items. They have to "
                "be the same items, in the same order, or no paired test means anything.",
            ),
            Mistake(
                "two arms suffice",
                _lists(
                    baselines=lambda e: (
                        "PASS"
                        if e["items"].get("base") == e["items"].get("tuned")
                        and e["items"].get("tuned")
                        else "FAIL"
                    )
                ),
                "The prompted base isn't looked at. Without it nobody knows whether a prompt would "
                "have done what the fine-tune did.",
            ),
            Mistake(
                "any drop",
                _lists(
                    retention=lambda e: "PASS" if e["retention"][1] >= e["retention"][0] else "FAIL"
                ),
                "Any drop fails; the contract allows one of `allowed_drop`.",
            ),
            Mistake(
                "measured is enough",
                _lists(retention=lambda e: "PASS"),
                "That retention was measured is enough here, whatever came out. Hold it against "
                "the drop that is allowed.",
            ),
        ),
        (
            Case((_ENDLESS,), "the answer's end token is masked"),
            Case(({**_GOOD, "mask": [0, 0, 1, 1, 1]},), "padding is trained"),
            Case(({**_GOOD, "trainable": 1_221_120},), "half of the layers were missed"),
            Case(({**_GOOD, "items": _OTHER_ITEMS},), "as many items, but others"),
            Case(
                ({**_GOOD, "items": {"base": ["a"], "tuned": ["a"]}},), "no prompted base was run"
            ),
            Case(({**_GOOD, "retention": [0.83, 0.55]},), "retention fell by 28 points"),
            Case((_without("retention"),), "retention was never measured"),
            Case((_without("kinds", "items"),), "there is evidence for two checks only"),
        ),
    ),
    Part(
        "verdict",
        _verdict,
        Case((dict.fromkeys(_CHECKS, "PASS"),)),
        "PASS",
        _draw_statuses,
        (
            Mistake(
                "not run is passed",
                lambda statuses: "FAIL" if "FAIL" in statuses.values() else "PASS",
                "Without a failure it says PASS, though some checks never ran. That is "
                "INSUFFICIENT_EVIDENCE.",
            ),
            Mistake(
                "not run is failed",
                lambda statuses: (
                    ("PASS" if all(s == "PASS" for s in statuses.values()) else "FAIL")
                    if statuses
                    else "INSUFFICIENT_EVIDENCE"
                ),
                "Checks that never ran make it FAIL; nothing was found to be wrong. That is "
                "INSUFFICIENT_EVIDENCE.",
            ),
            Mistake(
                "majority",
                lambda statuses: (
                    "INSUFFICIENT_EVIDENCE"
                    if not statuses
                    else "PASS"
                    if list(statuses.values()).count("PASS") * 2 > len(statuses)
                    else "FAIL"
                ),
                "The majority decides here. One required check that fails is enough to fail.",
            ),
            Mistake(
                "not run before failed",
                lambda statuses: (
                    "INSUFFICIENT_EVIDENCE"
                    if "NOT_RUN" in statuses.values() or not statuses
                    else _verdict(statuses)
                ),
                "A missing check hides a failed one. What is known to be wrong decides: FAIL "
                "first, then INSUFFICIENT_EVIDENCE.",
            ),
            Mistake(
                "nothing is passed",
                lambda statuses: _verdict(statuses) if statuses else "PASS",
                "No check at all is a PASS here: `all` of nothing is true. Nothing was shown: "
                "INSUFFICIENT_EVIDENCE.",
            ),
        ),
        (
            Case(({"mask": "NOT_RUN", "count": "FAIL"},), "one failed, one never ran"),
            Case(({},), "there is no check at all"),
        ),
    ),
)
