"""Which examples a run probes its model on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tunemath.pipeline import Run


def probed(sides: int, lengths: list[int]) -> list[int]:
    """Return the tokens of what is probed, of examples with so many a side."""
    run: Any = Run.__new__(Run)
    rows = [(SimpleNamespace(input_ids=(7,) * n),) * sides for n in lengths]
    run.__dict__["examples"] = rows
    return [len(example[0].input_ids) for example in run.probe_examples]


@pytest.mark.parametrize(
    ("sides", "lengths", "expected"),
    [
        (1, [9, 2, 8, 3, 7, 4, 6, 5, 1, 10, 12, 11], [1, 2, 4, 5]),  # of 12, up to the fifth
        (2, [9, 2, 8, 3, 7, 4, 6, 5, 1, 10, 12, 11], [1, 5]),
        (1, [5], [5]),
        (2, [5], [5]),
        (2, [900, 5], [5, 900]),  # the cut of a batch needs two, whatever they cost
        (1, [4, 3], [3, 4]),
    ],
)
def test_they_are_the_shorter_ones_unlike_in_length(sides, lengths, expected):
    assert probed(sides, lengths) == expected
