"""The script that runs the tests under other settings, and that they reach the libraries."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from processes import eventually, finished, started

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    spec = importlib.util.spec_from_file_location("matrix", ROOT / "scripts/matrix.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_torch_has_the_threads_that_the_environment_gives():
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_setting_reaches_the_libraries(matrix, threads):
    found = matrix.probe(matrix.VARIATIONS[0], threads)
    assert found["threads"] == threads
    assert matrix.differences(found, found) == "none of the seven computations tried"


@pytest.mark.parametrize(
    ("name", "changed", "why"),
    [
        ("MKL_CBWR=AVX512", {}, ""),
        ("MKL_CBWR=AVX512", {"capability": "AVX2"}, "this processor has no AVX512"),
        ("MKL_CBWR=AVX2", {"capability": "AVX2"}, ""),
        ("MKL_CBWR=AVX2", {"capability": "DEFAULT"}, "this processor has no AVX2"),
        (
            "MKL_CBWR=AVX2",
            {"capability": "SVE"},
            "whether this processor (SVE) has AVX2 is unknown",
        ),
        ("MKL_CBWR=COMPATIBLE", {"mkl": False}, "this torch has no mkl"),
        ("ONEDNN_MAX_CPU_ISA=AVX2", {"onednn": False}, "this torch has no onednn"),
        ("default", {"mkl": False, "onednn": False, "capability": "SVE"}, ""),
    ],
)
def test_what_the_machine_lacks_is_not_run(matrix, name, changed, why):
    variation = next(each for each in matrix.VARIATIONS if each.name == name)
    has = {"capability": "AVX512", "mkl": True, "onednn": True} | changed
    assert matrix.why_not(variation, has) == why


def test_no_setting_of_another_run_is_left(matrix, monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    onednn = next(each for each in matrix.VARIATIONS if each.name.startswith("ONEDNN"))
    found = matrix.environment(onednn, 2)
    assert "MKL_CBWR" not in found
    assert found["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "2"


def test_results_are_counted_from_pytests_own_report(matrix, tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_right(): pass\n"
        "@pytest.mark.parametrize('n', range(3))\n"
        "def test_wrong(n): assert n > 1\n"
        "@pytest.fixture\ndef broken(): raise OSError\n"
        "def test_error(broken): pass\n"
        "def test_skipped(): pytest.skip()\n"
    )
    report = tmp_path / "report.xml"
    assert matrix._counts(report) == {}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    finished([*command, "--rootdir", tmp_path, f"--junitxml={report}", tmp_path])
    assert matrix._counts(report) == {"passed": 2, "failed": 3, "skipped": 1}


HOLDS = """
import sys, time
sys.path.insert(0, sys.argv[1])
import matrix
with matrix.loops(2) as running:
    print(*[each.pid for each in running], flush=True)
    time.sleep(3600)
"""


def test_the_loops_end_with_the_script(matrix):
    with matrix.loops(2) as running:
        assert [each.poll() for each in running] == [None, None]
    assert all(each.poll() is not None for each in running)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_the_loops_end_with_a_script_that_is_killed():
    with started([sys.executable, "-c", HOLDS, ROOT / "scripts"]) as script:
        loops = [int(pid) for pid in script.line().split()]
        assert len(loops) == 2
        assert all(map(alive, loops))
        os.kill(script.process.pid, signal.SIGKILL)
        eventually(lambda: not any(map(alive, loops)))


def alive(pid: int) -> bool:
    """Return whether a process runs; one that nobody has waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
