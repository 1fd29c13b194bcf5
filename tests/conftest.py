"""The tiny job of `tiny_job`, its finished runs, and what holds for every test."""

from __future__ import annotations

import gc
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads would only wait

from preference_job import DPO
from tiny_job import make_tiny_job, make_tiny_model
from tunemath.contract import FineTune
from tunemath.pipeline import Run, advance

hypothesis.settings.register_profile(  # a busy machine is no failure
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


# Of the eleven families on which every tuner is held against PEFT, those that are unlike the rest:
# the others are slow tests.
TELLING = ("llama", "qwen3_moe", "gpt2", "t5", "bert", "vit")
_COMPARES = re.compile(r"\b(approx|assert_close|assert_allclose|allclose|isclose|tolerance)\b")
SLOW_SECONDS = 3600
"""How long a slow test may take; the limit of all others is in pyproject.toml."""


def pytest_collection_finish() -> None:
    """Leave modules and collected tests, which stay, out of each collection of garbage to come."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tuners' tests on families that others stand for as slow; give slow tests longer."""
    for item in items:
        family = getattr(item, "callspec", None) and item.callspec.params.get("family")
        if family and item.path.parent.name == "tuners" and family not in TELLING:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
        if "tests" in item.path.parts and _compares_numbers(item.path):
            item.add_marker(pytest.mark.numeric)


@cache
def _compares_numbers(path: Path) -> bool:
    """Return whether a test file compares within a tolerance, by what it calls."""
    return bool(_COMPARES.search(path.read_text("utf-8")))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep every test, and every process it starts, out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNEMATH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny_job(tmp_path: Path, tiny_model: Path) -> Path:
    """A contract in a folder of its own, with the tiny model beside it."""
    (tmp_path / "model").symlink_to(tiny_model)
    return make_tiny_job(tmp_path)


@pytest.fixture(scope="session")
def shared_job(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny job, made once; `finished` holds its runs. Nobody changes it."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "model").symlink_to(tiny_model)
    return make_tiny_job(folder)


@pytest.fixture(scope="session")
def sft_run(shared_job: Path) -> Run:
    """A finished SFT run. Copy its folder before changing anything in it."""
    return _finish(shared_job)


@pytest.fixture(scope="session")
def dpo_run(shared_job: Path) -> Run:
    """A finished DPO run. Copy its folder before changing anything in it."""
    return _finish(shared_job, *(text.format(folder=shared_job.parent) for text in DPO))


@pytest.fixture(scope="session")
def good(sft_run: Run, dpo_run: Run) -> dict[str, dict]:
    """The evidence of the two finished runs. Copy it before changing anything in it."""
    return {"sft": sft_run.evidence(), "dpo": dpo_run.evidence()}


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Run], Path]:
    """Copy a finished run, times and all; return the folder of the copy's runs."""

    def copy(run: Run) -> Path:
        shutil.copytree(run.folder.path, tmp_path / "runs" / run.folder.path.name)
        return tmp_path / "runs"

    return copy


def _finish(contract: Path, *overrides: str) -> Run:
    run = Run(FineTune.load(contract, overrides), contract.parent / "runs")
    advance(run)
    return run
