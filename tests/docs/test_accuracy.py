"""benchmarks/accuracy.py has a case for every function, and its page shows them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tunemath import objective
from tunemath.objective import fused, preference

ROOT = Path(__file__).parents[2]
# A record, a table of names and what calls by these names, and the factors of a head.
NOT_MEASURED = {"Objective", "PAIR_LOSSES", "pair_loss", "Lora"}
PUBLIC = {*objective.__all__, *preference.__all__, *fused.__all__} - NOT_MEASURED


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import accuracy  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return accuracy


def test_every_function_has_a_case_and_a_row_of_the_page(accuracy):
    names = [case.name for case in accuracy.CASES]
    assert {name.partition(",")[0] for name in names} == PUBLIC
    assert len(set(names)) == len(names)
    page = (ROOT / "docs" / "objective" / "accuracy.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`(, [^|]+)? \|", page, flags=re.MULTILINE)
    assert [f"{name}{note}".strip() for name, note in rows] == names


@pytest.mark.parametrize("name", ["dpo_loss", "simpo_loss", "kl_k3", "linear_kl"])
def test_float32_costs_a_few_roundings(accuracy, name):
    case = next(case for case in accuracy.CASES if case.name == name)
    assert accuracy.measure(case)["float32"]["median"] < 1e-6


def test_a_known_error_is_measured_as_such(accuracy):
    """A function off by 1 % in the lower dtype alone, and one that is 0 and should be."""

    def off(x):
        return x.a * (1.01 if x.a.dtype == torch.float32 else 1.0) * x.sign

    inputs = SimpleNamespace(
        a=torch.arange(4.0, dtype=torch.float64), sign=torch.tensor([1, 1, 1, 0])
    )
    case = accuracy.Case("off", lambda: inputs, off)
    errors = accuracy.errors(case, torch.float32)
    assert errors == pytest.approx([0.0, 0.01, 0.01, 0.0], rel=1e-4)


def test_the_reference_is_on_the_rounded_inputs(accuracy):
    """1/3 is no bfloat16, and rounding it is not the function's error."""
    case = accuracy.Case("same", lambda: accuracy.tensors(a=[1 / 3]), lambda x: x.a + 0)
    assert accuracy.errors(case, torch.bfloat16) == [0.0]
