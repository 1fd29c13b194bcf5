"""What the terminal says of a step's memory: the terms, whether they fit, what to change."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console, Group

from tunemath.report.memory import memory_tables, memory_view, peak

MIB = 2**20


def made(**changes: Any) -> dict[str, Any]:
    return {
        "architecture": "Llama", "model_type": "llama", "method": "lora", "device": "cpu",
        "rows": 2, "tokens": 128, "supervised": 64, "trainable": 1000, "saved_bytes": 5 * MIB,
        "step_flops": 7e12, "notes": ["carried"],
        "terms": [
            {"name": "base weights", "bytes": 11 * MIB, "at_peak": 12 * MIB, "exact": True},
            {"name": "activations", "bytes": 13 * MIB, "at_peak": 0, "error": 0.056},
        ],
        "moment": "backward pass", "peak_bytes": 21 * MIB, "total_bytes": 22 * MIB,
        "error_bytes": 3 * MIB, "limit_bytes": 23 * MIB, "fits": True,
        "largest": {"micro_batch": 4, "tokens": 0, "rank": 16},
        "changes": [
            {"change": "checkpointing", "peak_bytes": 9 * MIB, "fits": True, "cost": "time",
             "set": "a=1"},
            {"change": "half", "peak_bytes": 8 * MIB, "fits": False, "cost": "noise", "set": "b=2"},
        ],
        **changes,
    }  # fmt: skip


def lines(view: Any) -> list[str]:
    console = Console(width=160, no_color=True, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(view)
    return [" ".join(line.split()) for line in capture.get().splitlines() if line.strip()]


def test_every_number_stands_under_its_name():
    found = lines(memory_view(made()))
    assert found[:2] == [
        "Llama, lora: 2 rows of 128 tokens at once, 64 of each supervised, on cpu",
        "1,000 parameters are trained, 5.0 MiB on disk; 7.0 TFLOP a step",
    ]
    for line in (
        "base weights 11.0 MiB 12.0 MiB exact",
        "activations 13.0 MiB 0 bytes ± 6 %",
        "highest in the backward pass 21.0 MiB ± 3.0 MiB",
        "It fits in 23.0 MiB. The largest that fits, one at a time: examples at once 4, "
        "tokens a row none, rank 16",
        "checkpointing 9.0 MiB yes time a=1",
        "half 8.0 MiB no noise b=2",
        "Note: carried",
    ):
        assert line in found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "22.0 MiB, in the backward pass; fits in 23.0 MiB"),
        ({"fits": False}, "22.0 MiB, in the backward pass; does not fit in 23.0 MiB"),
        ({"limit_bytes": None}, "22.0 MiB, in the backward pass"),
    ],
)
def test_the_peak_in_one_line(changes, words):
    assert peak(made(**changes)) == words


def test_without_a_limit_only_the_terms_are_shown():
    found = lines(Group(*memory_tables(made(limit_bytes=None))))
    assert found[-1] == "highest in the backward pass 21.0 MiB ± 3.0 MiB"


@pytest.mark.parametrize(
    ("cheapest", "words"),
    [
        ([], "none was found; take a smaller model or a larger device"),
        ([{"change": "half", "set": "b=2"}], "half (b=2)"),
        ([{"change": "half", "set": "b=2"}, {"change": "c", "set": "d"}], "half (b=2); then c (d)"),
    ],
)
def test_what_does_not_fit_is_told_the_cheapest_way(cheapest, words):
    found = lines(Group(*memory_tables(made(fits=False, cheapest=cheapest))))
    assert f"The cheapest way to fit: {words}" in found
    assert any(line.startswith("It does not fit in 23.0 MiB.") for line in found)
    assert not any("cheapest" in line for line in lines(memory_view(made(cheapest=cheapest))))
