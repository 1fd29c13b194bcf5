from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tunemath.report.figures import figures


def _evidence() -> ModuleType:
    path = Path(__file__).with_name("evidence.py")
    spec = importlib.util.spec_from_file_location("report_evidence", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EVIDENCE = _evidence()


@pytest.fixture(scope="session")
def drawn() -> dict[str, Any]:
    """The figures that pages had so far, by the evidence that they show."""
    return {}


@pytest.fixture(autouse=True)
def draw_once(drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw for the pages of one evidence once: nearly all of a page's time."""

    def kept(evidence: dict[str, Any]) -> Any:
        here = sys.modules.get("matplotlib", True) is not None
        key = json.dumps([evidence, here], default=str)
        if key not in drawn:
            drawn[key] = figures(evidence)
        return drawn[key]

    monkeypatch.setattr("tunemath.report.html.figures", kept)


@pytest.fixture
def sft() -> dict[str, Any]:
    return EVIDENCE.sft()


@pytest.fixture
def dpo() -> dict[str, Any]:
    return EVIDENCE.dpo()


@pytest.fixture
def incomplete() -> dict[str, Any]:
    return EVIDENCE.incomplete()


@pytest.fixture(params=["sft", "dpo", "incomplete", "empty"])
def any_run(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {} if request.param == "empty" else getattr(EVIDENCE, request.param)()
