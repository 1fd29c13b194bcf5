"""A checkpoint counts when every file is as it was when sealed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunemath.runner.checkpoints import SealCheckpoints, latest_checkpoint
from tunemath.runner.trainer import Witness


def make_checkpoint(folder: Path, step: int, resumed_at: list[int] | None = None) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"weights" * step)
    (path / "optimizer.pt").write_bytes(b"optimizer" * step)
    seal = SealCheckpoints(Witness([]), resumed_at or [])
    seal.on_save(SimpleNamespace(output_dir=folder), SimpleNamespace(global_step=step), None)
    return path


def test_a_sealed_checkpoint_is_found_with_its_counts(tmp_path):
    path = make_checkpoint(tmp_path, 4, [2])
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == path
    assert found[1]["resumed_at"] == [2]
    assert found[1]["witness"] == {"seen": {}, "uncertified": 0, "supervised_tokens": 0}


def test_sealing_drops_older_ones(tmp_path):
    make_checkpoint(tmp_path, 9)
    newer = make_checkpoint(tmp_path, 10)
    assert list(tmp_path.iterdir()) == [newer]


def test_the_newest_is_by_number_and_not_by_name(tmp_path):
    make_checkpoint(tmp_path / "a", 9).rename(tmp_path / "checkpoint-9")
    make_checkpoint(tmp_path / "b", 10).rename(tmp_path / "checkpoint-10")
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[0].name == "checkpoint-10"


def no_seal(path: Path) -> None:
    (path / "complete.json").unlink()


def torn_seal(path: Path) -> None:
    (path / "complete.json").write_text('{"files": {')


def other_json(path: Path) -> None:
    (path / "complete.json").write_text(json.dumps({"something": "else"}))


def no_counts(path: Path) -> None:
    seal = json.loads((path / "complete.json").read_text())
    del seal["witness"]
    (path / "complete.json").write_text(json.dumps(seal))


def list_json(path: Path) -> None:
    (path / "complete.json").write_text("[1]")


def files_are_a_list(path: Path) -> None:
    seal = json.loads((path / "complete.json").read_text())
    (path / "complete.json").write_text(json.dumps(seal | {"files": ["weights"]}))


def cut_file(path: Path) -> None:
    (path / "weights").write_bytes(b"wei")


def lost_file(path: Path) -> None:
    (path / "optimizer.pt").unlink()


@pytest.mark.parametrize(
    "damage",
    [no_seal, torn_seal, other_json, no_counts, list_json, files_are_a_list, cut_file, lost_file],
)
def test_a_damaged_one_is_removed_and_the_one_before_it_taken(
    tmp_path, damage: Callable[[Path], None]
):
    make_checkpoint(tmp_path / "a", 5).rename(tmp_path / "checkpoint-5")
    make_checkpoint(tmp_path / "b", 10).rename(tmp_path / "checkpoint-10")
    damage(tmp_path / "checkpoint-10")
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[0].name == "checkpoint-5"
    assert not (tmp_path / "checkpoint-10").exists()


def test_somebodys_copy_is_left_alone(tmp_path):
    path = make_checkpoint(tmp_path, 5)
    shutil.copytree(path, tmp_path / "checkpoint-9-before")
    (tmp_path / "checkpoint-old").mkdir()
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == path
    assert (tmp_path / "checkpoint-old").is_dir()


def test_no_folder_is_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path / "none") is None
