NEEDS = {
    "mask": ["kinds", "mask"],
    "count": ["trainable", "planned"],
    "baselines": ["items"],
    "retention": ["retention", "allowed_drop"],
}


def mask_is_the_answer(evidence):
    answer = [kind in ("answer", "end") for kind in evidence["kinds"]]
    return any(answer) and answer == [bool(counts) for counts in evidence["mask"]]


def count_is_the_plan(evidence):
    return evidence["trainable"] == evidence["planned"]


def baselines_on_the_same_items(evidence):
    base, prompted, tuned = (evidence["items"].get(arm) for arm in ("base", "prompted", "tuned"))
    return bool(tuned) and base == prompted == tuned


def retention_holds(evidence):
    before, after = evidence["retention"]
    return after >= before - evidence["allowed_drop"]


JUDGES = {
    "mask": mask_is_the_answer,
    "count": count_is_the_plan,
    "baselines": baselines_on_the_same_items,
    "retention": retention_holds,
}


def checklist(evidence):
    found = {}
    for name, judge in JUDGES.items():
        if any(evidence.get(need) is None for need in NEEDS[name]):
            found[name] = "NOT_RUN"
        else:
            found[name] = "PASS" if judge(evidence) else "FAIL"
    return found


def verdict(statuses):
    if "FAIL" in statuses.values():
        return "FAIL"
    if statuses and set(statuses.values()) == {"PASS"}:
        return "PASS"
    return "INSUFFICIENT_EVIDENCE"
