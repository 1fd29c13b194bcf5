def checklist(evidence):
    """What four checks say of a fine-tune: PASS, FAIL, or NOT_RUN where evidence is missing.

    evidence is a dictionary; a key that it lacks, or has as None, is missing evidence.

    mask: evidence["kinds"] says what each token is: prompt, answer, end or padding;
        evidence["mask"] which are trained. All of answer and end must be, and nothing else.
    count: evidence["trainable"] parameters are evidence["planned"].
    baselines: evidence["items"] holds the ids of the items that base, prompted and tuned were
        evaluated on, in order: all three are there, none is empty, and they are the same.
    retention: evidence["retention"] is (before, after); it may fall by evidence["allowed_drop"].
    """


def verdict(statuses):
    """PASS if all passed, FAIL if any failed, else INSUFFICIENT_EVIDENCE."""
