"""SIGKILL at any point, then the same command: the numbers are those of a run left alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dying import FRESH

from processes import eventually, output_of, started
from tunemath.contract import FineTune
from tunemath.pipeline import Run, advance
from tunemath.runner.checkpoints import latest_checkpoint

Killer = Callable[[Path, Path, str, list[str]], int]


@pytest.fixture(scope="module")
def kill_at() -> Iterator[Killer]:
    """Start a run that dies at a point; return the signal that it died of."""
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name("dying.py")]
    with started(command) as process:

        def kill(contract: Path, runs: Path, point: str, overrides: list[str]) -> int:
            process.write(json.dumps([str(contract), str(runs), overrides, point]) + "\n")
            return int(process.line())

        yield kill


def numbers(folder: Path) -> dict[str, Any]:
    """Everything that a run found out, without seconds and without the story of its resuming."""
    found: dict[str, Any] = {}
    for name in ("training", "artefact", "baselines", "evaluation", "movement"):
        found[name] = json.loads((folder / f"{name}.json").read_text("utf-8"))
    for name in ("scorecard", "checklist", "mask"):
        found[name] = json.loads((folder / f"{name}.json").read_text("utf-8"))
    for path in sorted((folder / "items").iterdir()):
        found[path.name] = path.read_text("utf-8")
    adapter = folder / "adapter/adapter_model.safetensors"
    found["adapter"] = hashlib.sha256(adapter.read_bytes()).hexdigest()
    for key in ("seconds", "resumed_at"):
        del found["training"][key]
    return found


def resume(
    contract: Path, runs: Path, *overrides: str, fresh: bool = False
) -> tuple[list[int], list[str]]:
    """Run the same contract again; return where training took up, and the stages that ran."""
    ran: list[str] = []
    evidence = advance(
        Run(FineTune.load(contract, overrides), runs, fresh=fresh),
        "check",
        started=lambda stage, skipped: None if skipped else ran.append(stage),
    )
    return evidence["training"]["resumed_at"], ran


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["training"]["log"] == expected["training"]["log"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == value, name


POINTS = [
    ("sealed 1", [3], "train"),
    pytest.param("unsealed 1", [], "train", marks=pytest.mark.slow),
    ("unsealed 3", [6], "train"),
    pytest.param("unprobed", [18], "train", marks=pytest.mark.slow),
    pytest.param("before artefact.json", [], "artefact", marks=pytest.mark.slow),
    ("merged", [], "artefact"),
    pytest.param("after base.task.jsonl", [], "baselines", marks=pytest.mark.slow),
    ("before baselines.json", [], "baselines"),
    pytest.param("before evaluation.json", [], "evaluate", marks=pytest.mark.slow),
    pytest.param("before checklist.json", [], "check", marks=pytest.mark.slow),
    pytest.param(
        "renaming manifest.json 4", [18], "train", marks=pytest.mark.slow
    ),  # train is the fourth stage
]


@pytest.mark.parametrize(("point", "resumed_at", "stage"), POINTS)
def test_a_killed_run_ends_with_the_same_numbers(
    kill_at, sft_run, shared_job, tmp_path, point, resumed_at, stage
):
    assert kill_at(shared_job, tmp_path, point, []) == signal.SIGKILL
    found, ran = resume(shared_job, tmp_path)
    assert ran[0] == stage  # what was finished is not repeated
    assert found == resumed_at
    assert_same(numbers(tmp_path / "tiny"), numbers(sft_run.folder.path))
    assert not (tmp_path / "tiny/checkpoints").exists()


LEFT = [
    ("renaming contract.yaml 1", ".contract.yaml."),
    ("renaming plan.json 1", ".plan.json."),
    ("renaming base.task.jsonl 1", "items/.base.task.jsonl."),
    ("renaming manifest.json 2", ".manifest.json."),
    ("renaming tuned.retention.jsonl 1", "items/.tuned.retention.jsonl."),
    ("saving", ".adapter.part"),
]


def left_over(folder: Path) -> list[str]:
    """What in a folder begins with a dot, but for the lock."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob(".*"))
    return sorted(name for name in names if name != ".lock")


@pytest.mark.parametrize(("point", "left"), LEFT)
def test_what_a_killed_run_left_is_gone_with_the_next_start(
    kill_at, shared_job, tmp_path, point, left
):
    folder = tmp_path / "tiny"
    assert kill_at(shared_job, tmp_path, point, []) == signal.SIGKILL
    (found,) = left_over(folder)
    assert found.startswith(left)
    for name in (".mine.json", ".plan.json.original", "items/.notes.12345678"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    advance(Run(FineTune.load(shared_job), tmp_path), "plan")
    assert left_over(folder) == [".mine.json", ".plan.json.original", "items/.notes.12345678"]


@pytest.mark.slow
def test_a_run_killed_twice_tells_both(kill_at, sft_run, shared_job, tmp_path):
    assert kill_at(shared_job, tmp_path, "sealed 1", []) == signal.SIGKILL
    assert kill_at(shared_job, tmp_path, "sealed 2", []) == signal.SIGKILL
    assert resume(shared_job, tmp_path)[0] == [3, 9]
    assert_same(numbers(tmp_path / "tiny"), numbers(sft_run.folder.path))


@pytest.mark.parametrize(
    ("point", "resumed_at"),
    [("sealed 2", [6]), pytest.param("unsealed 2", [3], marks=pytest.mark.slow)],
)
def test_a_killed_dpo_run_ends_with_the_same_numbers(
    kill_at, dpo_run, shared_job, tmp_path, point, resumed_at
):
    folder = shared_job.parent
    overrides = [
        "name=tiny-dpo",
        "objective.kind=dpo",
        f"mask.train={folder / 'pairs.jsonl'}",
        f"evaluation.task={folder / 'held.jsonl'}",
    ]
    assert kill_at(shared_job, tmp_path, point, overrides) == signal.SIGKILL
    assert resume(shared_job, tmp_path, *overrides)[0] == resumed_at
    assert_same(numbers(tmp_path / "tiny-dpo"), numbers(dpo_run.folder.path))


@pytest.mark.slow
def test_dropout_continues_as_it_would_have(kill_at, shared_job, tmp_path):
    """The state of the random generator is part of a checkpoint."""
    overrides = ["space.dropout=0.2"]
    assert kill_at(shared_job, tmp_path / "killed", "sealed 2", overrides) == signal.SIGKILL
    assert resume(shared_job, tmp_path / "killed", *overrides)[0] == [6]
    assert resume(shared_job, tmp_path / "alone", *overrides)[0] == []
    assert_same(numbers(tmp_path / "killed/tiny"), numbers(tmp_path / "alone/tiny"))


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "name",
    [
        "trained.safetensors",
        pytest.param("optimizer.pt", marks=pytest.mark.slow),
        pytest.param("complete.json", marks=pytest.mark.slow),
    ],
)
def test_a_torn_checkpoint_is_not_resumed_from(kill_at, sft_run, shared_job, tmp_path, name):
    assert kill_at(shared_job, tmp_path, "sealed 2", []) == signal.SIGKILL
    checkpoints = tmp_path / "tiny/checkpoints"
    cut_in_half(checkpoints / "checkpoint-6" / name)
    assert latest_checkpoint(checkpoints) is None
    assert not (checkpoints / "checkpoint-6").exists()
    assert resume(shared_job, tmp_path)[0] == []
    assert_same(numbers(tmp_path / "tiny"), numbers(sft_run.folder.path))


def test_a_started_training_is_not_continued_under_another_contract(kill_at, shared_job, tmp_path):
    from tunemath.errors import RunError

    assert kill_at(shared_job, tmp_path, "sealed 1", []) == signal.SIGKILL
    with pytest.raises(RunError, match=r"budget\.learning_rate 0\.02 → 0\.01"):
        resume(shared_job, tmp_path, "budget.learning_rate=0.01")
    assert (tmp_path / "tiny/checkpoints/checkpoint-3/complete.json").exists()


def test_training_anew_is_resumed_too(kill_at, sft_run, shared_job, tmp_path):
    """`--fresh` gives up other weights, never its own checkpoints."""
    other = ["budget.learning_rate=0.01", "budget.epochs=1"]
    advance(Run(FineTune.load(shared_job, other), tmp_path), "train")
    assert kill_at(shared_job, tmp_path, "sealed 2", [FRESH]) == signal.SIGKILL
    assert resume(shared_job, tmp_path, fresh=True)[0] == [6]
    assert_same(numbers(tmp_path / "tiny"), numbers(sft_run.folder.path))


def test_checkpoints_of_nobody_knows_what_are_not_resumed_from(
    kill_at, sft_run, shared_job, tmp_path
):
    """As when a process dies while it deletes old checkpoints, their inputs first."""
    wider = "space.rank=8"
    assert kill_at(shared_job, tmp_path, "sealed 1", [wider]) == signal.SIGKILL
    (tmp_path / "tiny/checkpoints/inputs.json").unlink()
    assert resume(shared_job, tmp_path)[0] == []
    assert_same(numbers(tmp_path / "tiny"), numbers(sft_run.folder.path))


@pytest.mark.slow
def test_the_command_killed_from_outside(sft_run, shared_job, tmp_path):
    """`tunemath run`, SIGKILL from another process once a checkpoint is sealed, and again."""
    command = [
        sys.executable,
        "-c",
        "from tunemath.cli import main; main()",
        "run",
        str(shared_job),
        "--runs",
        str(tmp_path),
    ]
    with started(command) as process:
        eventually(lambda: list(tmp_path.glob("tiny/checkpoints/checkpoint-*/complete.json")))
        assert process.process.poll() is None
        os.kill(process.process.pid, signal.SIGKILL)
        assert process.ended() == -signal.SIGKILL
    assert json.loads(output_of([*command, "--json"]))["verdict"] == "PASS"
    training = json.loads((tmp_path / "tiny/training.json").read_text())
    assert training["resumed_at"]
    assert_same(numbers(tmp_path / "tiny"), numbers(sft_run.folder.path))
