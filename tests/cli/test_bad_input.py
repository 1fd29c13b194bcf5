"""Bad input: exit code 2, one line or two that say what to do, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from processes import finished, output_of
from tunemath.cli import main
from tunemath.extras import install_command

Spoil = Callable[[Path], list[str] | None]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


def in_contract(old: str, new: str) -> Spoil:
    """Replace a piece of the contract's text."""

    def spoil(folder: Path) -> None:
        path = folder / "tiny.yaml"
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new), "utf-8")

    return spoil


def row(number: int, text: str, name: str = "train.jsonl") -> Spoil:
    """Put ``text`` in place of a data file's line."""

    def spoil(folder: Path) -> None:
        path = folder / name
        lines = path.read_text("utf-8").splitlines()
        lines[number - 1] = text
        path.write_text("\n".join(lines) + "\n", "utf-8")

    return spoil


def whole(text: str, name: str = "train.jsonl") -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).write_text(text, "utf-8")

    return spoil


def settings(*overrides: str) -> Spoil:
    return lambda folder: [part for override in overrides for part in ("--set", override)]


def model_without(name: str, *, pickled: bool = False, config: str | None = None) -> Spoil:
    """Use a copy of the model with a file left out."""

    def spoil(folder: Path) -> list[str]:
        copy = folder / "copy"
        copy.mkdir()
        for path in (folder / "model").iterdir():
            if path.name != name:
                (copy / path.name).write_bytes(path.read_bytes())
        if pickled:
            (copy / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        if config is not None:
            (copy / "config.json").write_text(config)
        return ["--set", f"model={copy}"]

    return spoil


def cut_weights(folder: Path) -> list[str]:
    spoiled = model_without("nothing")(folder)
    path = folder / "copy/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert spoiled is not None
    return spoiled


def remove_contract(folder: Path) -> None:
    (folder / "tiny.yaml").unlink()


def remove(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def chat(user: str, answer: str) -> str:
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": user},
        {"role": "assistant", "content": answer},
    ]
    return json.dumps({"messages": turns})


BAD: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "no contract": (remove_contract, ("tiny.yaml does not exist", "tunemath init")),
    "malformed YAML": (
        in_contract("mask: {train: train.jsonl, ", "mask: {train: train.jsonl, }}"),
        ("tiny.yaml:4", "not valid YAML"),
    ),
    "key given twice": (
        in_contract("evaluation:\n", "name: other\nevaluation:\n"),
        ("tiny.yaml:6", "'name' is given twice"),
    ),
    "unknown key": (
        in_contract("space: {rank", "space: {rnak"),
        ("unknown key space.rnak; did you mean rank?",),
    ),
    "wrong type": (
        in_contract("epochs: 6", "epochs: many"),
        ("budget.epochs", "valid integer", '"many"'),
    ),
    "micro-batch": (
        in_contract("micro_batch_size: 4", "micro_batch_size: 3"),
        ("micro_batch_size 3 does not divide batch_size 8",),
    ),
    "malformed override": (settings("rank"), ("expected section.key=value",)),
    "target that matches nothing": (
        settings("space.targets=[q_prj]"),
        ("q_prj", "q_proj", "down_proj"),
    ),
    "one target of two": (settings("space.targets=[q_proj, v_prj]"), ("v_prj", "v_proj")),
    "no training file": (remove("train.jsonl"), ("train.jsonl",)),
    "no task file": (remove("task.jsonl"), ("task.jsonl",)),
    "empty training file": (whole(""), ("train.jsonl",)),
    "empty retention file": (whole("\n", "retention.jsonl"), ("retention.jsonl",)),
    "row that is not JSON": (row(3, "{'messages': 1}"), ("train.jsonl:3",)),
    "row that is no object": (row(4, "[1, 2]"), ("train.jsonl:4",)),
    "row without messages": (row(5, '{"text": "x"}'), ("train.jsonl:5",)),
    "unknown role": (
        row(2, json.dumps({"messages": [{"role": "robot", "content": "x"}]})),
        ("train.jsonl:2", "robot"),
    ),
    "empty answer": (row(7, chat("red 7", "")), ("train.jsonl:7",)),
    "blank answer": (row(7, chat("red 7", "  \n")), ("train.jsonl:7",)),
    "row longer than the limit": (row(8, chat("long " * 40, "yes")), ("train.jsonl:8", "64")),
    "item without an answer": (
        row(2, '{"messages": [{"role": "user", "content": "red"}]}', "task.jsonl"),
        ("task.jsonl:2", "answer"),
    ),
    "choice that is not there": (
        row(
            3,
            '{"messages": [{"role": "user", "content": "x"}], "choices": ["a", "b"], "answer": 7}',
            "retention.jsonl",
        ),
        ("retention.jsonl:3",),
    ),
    "too many examples": (settings("evaluation.few_shot=99"), ("few_shot", "99", "24")),
    "no model": (settings("model=./nowhere"), ("nowhere", "hub id")),
    "model without weights": (model_without("model.safetensors"), ("copy", "safetensors")),
    "pickled model": (model_without("model.safetensors", pickled=True), ("pickle",)),
    "model without a configuration": (model_without("config.json"), ("config.json",)),
    "broken configuration": (model_without("config.json", config="{"), ("config.json",)),
    "model without a tokenizer": (model_without("tokenizer.json"), ("tokenizer.json",)),
    "cut weights": (cut_weights, ("model.safetensors",)),
}


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("name", BAD)
def test_bad_input(call, tiny_job, command, name):
    spoil, words = BAD[name]
    extra = spoil(tiny_job.parent) or []
    code, out, err = call(command, tiny_job, "--runs", tiny_job.parent / "runs", *extra)
    assert (code, out) == (2, ""), err
    for word in words:
        assert word in err
    assert err.startswith("error: ")
    assert 1 <= len(err.strip().splitlines()) <= 2
    assert "Traceback" not in err
    written = [p for p in (tiny_job.parent / "runs").rglob("*") if p.name != ".lock"]
    assert [p.name for p in written if p.is_file()] == []


def test_pairs_whose_sides_are_equal(call, tiny_job):
    folder = tiny_job.parent
    row(2, json.dumps({"prompt": "x", "chosen": "yes", "rejected": "yes"}), "pairs.jsonl")(folder)
    overrides = ["objective.kind=dpo", f"mask.train={folder / 'pairs.jsonl'}"]
    code, _, err = call("plan", tiny_job, *(part for o in overrides for part in ("--set", o)))
    assert code == 2
    assert "pairs.jsonl:2" in err


def test_a_missing_library_gives_the_command(call, monkeypatch):
    from tunemath.cli import app

    def fail(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(app, "app", fail)
    code, out, err = call("plan")
    assert (code, out) == (2, "")
    assert err == f"error: this command needs torch; run: {install_command('train')}\n"


def test_a_fault_of_ours_is_70_with_its_traceback(call, monkeypatch):
    from tunemath.cli import app

    def fail(*args, **kwargs):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(app, "app", fail)
    code, out, err = call("plan")
    assert (code, out) == (70, "")
    assert "Traceback" in err
    assert "please report it" in err


# --- disks that say no


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.EACCES, "no permission"), (errno.EROFS, "read-only"), (errno.ENOSPC, "disk is full")],
)
def test_a_folder_that_may_not_be_written(call, tiny_job, monkeypatch, code, words):
    runs = tiny_job.parent / "runs"
    original = os.replace

    def refuse(source, target, *args, **kwargs):
        if str(target).startswith(str(runs)):
            raise OSError(code, os.strerror(code))
        return original(source, target, *args, **kwargs)

    monkeypatch.setattr(os, "replace", refuse)
    status, out, err = call("plan", tiny_job, "--runs", runs)
    assert (status, out) == (2, "")
    assert words in err
    assert str(runs) in err
    assert len(err.splitlines()) == 1
    assert [p.name for p in runs.rglob("*") if p.is_file() and p.name != ".lock"] == []


def test_a_file_where_the_runs_should_be(call, tiny_job):
    runs = tiny_job.parent / "runs"
    runs.write_text("")
    status, out, err = call("plan", tiny_job, "--runs", runs)
    assert (status, out) == (2, "")
    assert "error: cannot write" in err
    assert len(err.splitlines()) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB, where the right to mount one is had."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = finished(mount).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("may not mount a tmpfs")
    try:
        yield folder
    finally:
        output_of(["umount", folder])


def test_a_disk_that_fills_up_in_training(call, sft_run, shared_job, small_disk):
    status, out, err = call("run", shared_job, "--runs", small_disk)
    assert (status, out) == (2, ""), err
    last = err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert "disk is full; free some space and run the same command again" in err
    assert str(small_disk) in err, last
    for path in small_disk.glob("tiny/*.json"):
        json.loads(path.read_text("utf-8"))
    assert not (small_disk / "tiny/adapter").exists()
    output_of(["mount", "-o", "remount,size=64m", small_disk])
    status, out, _ = call("run", shared_job, "--runs", small_disk, "--json")
    assert (status, json.loads(out)["verdict"]) == (0, "PASS")
    name = "adapter/adapter_model.safetensors"
    assert (small_disk / "tiny" / name).read_bytes() == (sft_run.folder.path / name).read_bytes()
