from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _evidence() -> ModuleType:
    path = Path(__file__).with_name("evidence.py")
    spec = importlib.util.spec_from_file_location("report_evidence", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EVIDENCE = _evidence()


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
