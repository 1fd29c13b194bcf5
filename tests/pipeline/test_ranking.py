"""`tunemath rank`, from a run or two models to advice: resumed, checked, refused."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from processes import finished
from tunemath.cli import main

DIE = """
import os, signal, sys
from tunemath.pipeline import points
from tunemath.cli import main
write, left = points.write_json, [int(sys.argv[1])]
def dying(path, value):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, value)
points.write_json = dying
main(sys.argv[2:])
"""


@pytest.fixture
def rank(capsys):
    def call(*arguments: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["rank", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


def test_a_runs_curve_ends_at_the_base_and_at_the_tuned_model(sft_run, copied, rank):
    runs = copied(sft_run)
    code, out, _ = rank("tiny", "--ranks", "1,2", "--json", "--runs", runs)
    assert code == 0
    found = json.loads(out)
    curve = found["curves"][0]
    assert [row["rank"] for row in curve["points"]] == [0, 1, 2, 4]
    first, last = curve["points"][0], curve["points"][-1]
    moved = found["moved"]["task"]["kl"]
    assert first["sets"]["task"]["kl_tuned_cut"]["kl"] == pytest.approx(moved)
    assert first["sets"]["task"]["kl_cut_base"]["kl"] == 0
    assert last["sets"]["task"]["kl_cut_base"]["kl"] == pytest.approx(moved, rel=1e-4)
    assert last["sets"]["task"]["kl_tuned_cut"]["kl"] < 1e-6 * moved
    for row, file, arm in ((first, "baselines", "base"), (last, "evaluation", "tuned")):
        evaluated = sft_run.folder.read(f"{file}.json")["arms"][arm]
        assert row["score"]["correct"] == evaluated["task"]["correct"]
    assert found["as_evaluated"] == {"same": 12, "of": 12}
    page = (runs / "tiny/rank/rank.html").read_text("utf-8")
    assert page.count("<svg") == 2
    assert (runs / "tiny/rank/rank.svg").read_text("utf-8").startswith("<svg")


@pytest.mark.slow
def test_after_a_kill_the_rest_is_measured_and_the_numbers_are_the_same(
    sft_run, copied, rank, tmp_path
):
    options = ("tiny", "--ranks", "1,2", "--json", "--runs")
    _, out, _ = rank(*options, copied(sft_run))
    expected = json.loads(out)
    killed = tmp_path / "killed"
    shutil.copytree(sft_run.folder.path, killed / "tiny")
    command = [sys.executable, "-W", "ignore", "-c", DIE, "9", "rank", *options, str(killed)]
    done = finished(command)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = {path: path.stat().st_mtime_ns for path in (killed / "tiny/rank").rglob("*.json")}
    assert len(kept) == 8  # points, and no product yet
    _, out, _ = rank(*options, killed)
    found = json.loads(out)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    for product in (expected, found):
        del product["update"]["path"], product["advice"]
    assert found == expected


def planted(model: Path, folder: Path, rank: int) -> Path:
    """Write a copy of a model, each of its projections changed by a matrix of one rank."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(4)
    for name, weight in weights.items():
        if "_proj" in name:
            left = torch.randn((weight.shape[0], rank), generator=generator)
            right = torch.randn((rank, weight.shape[1]), generator=generator)
            weight += 0.05 * left @ right
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_planted_rank_of_two_is_found_to_be_needed(tiny_model, shared_job, rank, tmp_path):
    tuned = planted(tiny_model, tmp_path / "tuned", 2)
    data = shared_job.parent / "task.jsonl"
    out = tmp_path / "out"
    code, text, _ = rank(
        tiny_model, tuned, "--data", data, "--out", out, "--ranks", "1,2,3", "--margin", "0.5",
        "--json",
    )  # fmt: skip
    assert code == 0
    found = json.loads(text)
    assert [curve["needed"] for curve in found["curves"]] == [2, 2, 2]
    assert [curve["undecided"] for curve in found["curves"]] == [[], [], []]
    assert found["update"]["rank"] == 64
    assert found["together"]["ranks"] == {"attention": 2, "feed-forward": 2}
    kept = found["curves"][0]["points"][2]
    assert kept["energy"] == pytest.approx(1.0, abs=1e-6)
    assert kept["sets"]["task"]["lost"]["high"] < 1e-4
    assert found["advice"][0].startswith("Rank 2 of 64 would have been enough: ")
    assert "`rank: 2`" in found["advice"][1]


def test_without_data_the_tuned_model_answers_probes_itself(tiny_model, rank, tmp_path):
    tuned = planted(tiny_model, tmp_path / "tuned", 1)
    code, out, err = rank(tiny_model, tuned, "--out", tmp_path / "out", "--ranks", "1")
    assert code == 0
    assert "KL only, no score" in " ".join(err.split())
    assert "Rank 1 of 64 would have been enough" in out
    assert "16 probes items" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--ranks", "one"], "--ranks is 'one'; give whole numbers"),
        (["tiny", "--ranks", "0,1"], "whole numbers of 1 or more"),
        (["tiny", "--margin", "5"], "--margin is 5; give a share between 0 and 1"),
        (["tiny", "--data", "task.jsonl"], "--data goes with BASE and TUNED"),
        (["none"], "no run at none"),
        (["tiny", "nowhere"], "nowhere is no folder"),
    ],
)
def test_bad_input_is_refused_with_the_fix(sft_run, rank, arguments, message):
    code, _, err = rank(*arguments, "--runs", sft_run.folder.path.parent)
    assert code == 2
    assert message in " ".join(err.split())


def test_a_changed_adapter_is_refused(sft_run, copied, rank):
    runs = copied(sft_run)
    weights = runs / "tiny/adapter/adapter_model.safetensors"
    changed = {name: 2 * each for name, each in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    code, _, err = rank("tiny", "--runs", runs)
    assert code == 2
    assert "changed after train was recorded" in " ".join(err.split())
