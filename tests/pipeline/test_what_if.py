"""What-if planning answers beside a run and leaves its folder as it is."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tunemath.cli import main
from tunemath.contract import FineTune
from tunemath.errors import RunError
from tunemath.pipeline import Run, advance


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


def content(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file there is."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


WHAT_IFS = [
    "space.rank=8",
    "budget.learning_rate=0.001",
    "budget.save_every=1",
    "evaluation.retention_margin=0.2",
    "evaluation.max_new_tokens=9",
    "mask.max_length=60",
    "seed=3",
]


@pytest.mark.parametrize("stage", ["plan", "mask"])
@pytest.mark.parametrize("override", WHAT_IFS)
def test_a_finished_run_is_not_touched(call, sft_run, shared_job, copied, stage, override):
    runs = copied(sft_run)
    before = content(runs)
    code, out, err = call(stage, shared_job, "--runs", runs, "--set", override, "--json")
    assert code == 0
    assert f"what if: nothing was saved, as {runs / 'tiny'} holds a run of another" in err
    assert override.partition("=")[0] in err
    fresh = Run(FineTune.load(shared_job, [override]), runs.parent / "beside")
    alone = advance(fresh, stage)[stage]
    found = json.loads(out)
    if stage == "plan":  # its seconds are measured
        del found["seconds"], alone["seconds"]
    assert found == alone
    assert content(runs) == before


def test_the_library_says_that_nothing_was_saved(sft_run, shared_job, copied):
    runs = copied(sft_run)
    before = content(runs)
    evidence = advance(Run(FineTune.load(shared_job, ["space.rank=8"]), runs), "plan")
    assert evidence["what_if"].endswith("(space.rank 4 → 8)")
    assert set(evidence) == {"contract", "plan", "what_if"}
    assert content(runs) == before
    own = advance(Run(FineTune.load(shared_job), runs), "plan")
    assert "what_if" not in own
    assert own["plan"] == sft_run.evidence()["plan"]


def test_data_that_changed_since_is_another_run(tiny_job):
    folder = tiny_job.parent
    advance(Run(FineTune.load(tiny_job), folder / "runs"), "baselines")
    train = folder / "train.jsonl"
    train.write_text("".join(train.read_text().splitlines(keepends=True)[1:]))
    before = content(folder / "runs")
    evidence = advance(Run(FineTune.load(tiny_job), folder / "runs"), "mask")
    assert "data.train" in evidence["what_if"]
    assert evidence["mask"]["rows"] == 23
    assert content(folder / "runs") == before


def test_a_plan_alone_is_planned_over(tiny_job):
    runs = tiny_job.parent / "runs"
    for rank in (2, 4):
        evidence = advance(Run(FineTune.load(tiny_job, [f"space.rank={rank}"]), runs), "plan")
        assert "what_if" not in evidence
    assert FineTune.load(runs / "tiny/contract.yaml").space.rank == 4


def test_fresh_claims_the_folder(sft_run, shared_job, copied):
    runs = copied(sft_run)
    contract = FineTune.load(shared_job, ["space.rank=8"])
    assert "what_if" not in advance(Run(contract, runs, fresh=True), "plan")
    assert FineTune.load(runs / "tiny/contract.yaml").space.rank == 8


HOLDER = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("override", ["space.rank=8", "space.rank=4"])
def test_planning_answers_while_another_process_trains(tiny_job, override):
    runs = tiny_job.parent / "runs"
    advance(Run(FineTune.load(tiny_job), runs), "mask")
    before = content(runs)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(runs / "tiny/.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        try:
            evidence = advance(Run(FineTune.load(tiny_job, [override]), runs), "plan")
            assert evidence["what_if"] == f"another process is working on {runs / 'tiny'}"
            assert evidence["plan"]["parameters"]["trainable"] > 0
            with pytest.raises(RunError, match="another process is working"):
                advance(Run(FineTune.load(tiny_job), runs), "train")
        finally:
            holder.kill()
    assert content(runs) == before
