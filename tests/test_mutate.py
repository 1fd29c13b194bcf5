"""Which faults the mutation run plants, and that a sample stays the same."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray", reason="the mutation extra is not installed")
SCRIPT = Path(__file__).parents[1] / "scripts" / "mutate.py"
SOURCE = '''\
def inside(length: int | None, limit: float = 0.5) -> bool:
    """Return whether a length of 3 < 4 is within the limit."""
    if length is None:
        raise ValueError(f"{1 + 1} lengths")
    return length <= limit
'''


@pytest.fixture
def mutate(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("mutate", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mutate", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text(SOURCE, encoding="utf-8")
    return module


def planted(mutate, name="a.py"):
    """Return every fault as the lines that it changes."""
    source = (mutate.ROOT / name).read_text("utf-8")
    for _, spec in mutate.mutants(Path(name)):
        operator = mutate.operators()[spec.operator_name]
        text = mutate.mutate_code(source, operator, spec.occurrence)
        pairs = zip(source.splitlines(), text.splitlines(), strict=True)
        yield [" ".join(new.split()) for old, new in pairs if old != new]


def test_faults_are_planted_where_a_test_can_see_them(mutate):
    found = list(planted(mutate))
    assert all(len(lines) == 1 for lines in found)
    assert {line for (line,) in found} == {
        "def inside(length: int | None, limit: float = 0.55) -> bool:",
        "def inside(length: int | None, limit: float = 0.45) -> bool:",
        "if length is not None:",
        "if not length is None:",
        *(f"return length {sign} limit" for sign in ("==", "!=", "<", ">", ">=")),
    }


def test_a_sample_is_its_seed_s_and_heeds_no_other_line(mutate):
    def sample(seed=0, count=2):
        items = mutate.draw([Path("a.py")], seed, count)
        return [item.job_id for item in items]

    first = sample()
    assert first == sample() != sample(seed=1)
    places = len(sample(count=99))
    (mutate.ROOT / "a.py").write_text(f"LATEST = 7\n\n\n{SOURCE}", encoding="utf-8")
    assert sample(count=99) != first
    assert set(first) <= set(sample(count=places + 1))


def test_a_fault_of_nothing_is_one_all_the_same(mutate):
    (mutate.ROOT / "a.py").write_text("ZERO = 0.0\n", encoding="utf-8")
    assert sorted(planted(mutate)) == [["ZERO = -1.0"], ["ZERO = 1.0"]]
