"""Sentences that are made of several products."""

from __future__ import annotations

from tunemath.report.results import timing_sentence


def test_time_of_killed_processes_is_neither_known_nor_compared():
    seconds = {"mask": 2.0, "train": 100.0}
    evidence = {
        "plan": {"seconds": {**seconds, "total": 102.0}},
        "manifest": {"stages": {"mask": {"seconds": 3.0}, "train": {"seconds": 10.0}}},
        "training": {"resumed_at": []},
    }
    assert timing_sentence(evidence) == (
        "The stages that have both figures took 13.0 s, 87.3 % less than the 1 min 42 s planned."
    )
    evidence["training"]["resumed_at"] = [3, 9]
    assert timing_sentence(evidence) == (
        "The stages that have both figures took 3.0 s, 50.0 % more than the 2.0 s planned. "
        "Training went on from step 9 after it was interrupted: its seconds are those of the last "
        "process alone, and left out here."
    )
