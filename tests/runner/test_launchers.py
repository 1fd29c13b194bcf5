"""A run is one process on one device, whatever started it and however many devices are there."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from tunemath.contract import FineTune
from tunemath.errors import RunError
from tunemath.pipeline import Run, advance
from tunemath.runner import models
from tunemath.runner.launchers import refuse_several_processes, without_launcher
from tunemath.runner.models import choose_device
from tunemath.runner.trainer import TuneTrainer

LAUNCHED = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


@pytest.fixture
def gpus(monkeypatch):
    """Let torch see three GPUs; nothing may touch them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device}")
    models._tell_of_others.cache_clear()
    yield
    models._tell_of_others.cache_clear()


def test_of_several_gpus_the_first_is_used_and_said_once(gpus, caplog):
    with caplog.at_level(logging.WARNING, logger="tunemath"):
        chosen = [choose_device() for _ in range(3)]
    assert chosen == [(torch.device("cuda", 0), torch.bfloat16)] * 3
    (said,) = caplog.messages
    assert said == (
        "3 GPUs are here; this run uses one, cuda:0 (card cuda:0); CUDA_VISIBLE_DEVICES chooses "
        "which, as in CUDA_VISIBLE_DEVICES=1"
    )


def test_one_gpu_is_nothing_to_talk_of(gpus, caplog, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    choose_device()
    assert caplog.messages == []


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_step_is_never_spread_over_the_devices_that_transformers_counts(
    tiny_job, tmp_path, monkeypatch, objective
):
    wrapped, rows = [], []
    monkeypatch.setattr(nn.DataParallel, "__init__", lambda *args, **_: wrapped.append(args))
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    step = TuneTrainer.training_step

    def count(self, model, inputs, *others):
        rows.append(len(inputs["labels"]))
        return step(self, model, inputs, *others)

    monkeypatch.setattr(TuneTrainer, "training_step", count)
    overrides = ["budget.epochs=1"]
    if objective == "dpo":
        pairs, held = tiny_job.parent / "pairs.jsonl", tiny_job.parent / "held.jsonl"
        overrides += ["objective.kind=dpo", f"mask.train={pairs}", f"evaluation.task={held}"]
    run = Run(FineTune.load(tiny_job, overrides), tmp_path / "runs")
    training = advance(run, "train")["training"]
    assert wrapped == []
    budget, sides = run.contract.budget, 2 if objective == "dpo" else 1
    trained = rows[-training["steps"] * budget.accumulation :]  # probes came before
    assert set(trained) == {budget.micro_batch_size * sides}
    assert training["steps"] == training["steps_planned"]
    assert (training["device"], training["devices"]) == ("cpu", 1)


@pytest.mark.parametrize("size", LAUNCHED)
def test_one_of_several_processes_is_refused(monkeypatch, size):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    refuse_several_processes()
    monkeypatch.setenv(size, "1")
    refuse_several_processes()
    monkeypatch.setenv(size, "4")
    with pytest.raises(RunError, match=f"one of 4 processes \\({size}=4\\)"):
        refuse_several_processes()


def test_what_is_no_number_of_processes_says_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "many")
    refuse_several_processes()


def test_a_launcher_is_named_where_it_says_who_it_is(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(RunError, match=r"^started by torchrun as process 1 of 2, counted from 0"):
        refuse_several_processes()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(RunError, match=r"^started by accelerate launch as process 1 of 2"):
        refuse_several_processes()


def test_a_launched_process_leaves_no_lock_and_no_folder(tiny_job, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="one of 2 processes"):
        advance(Run(FineTune.load(tiny_job), tmp_path / "runs"), "train")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RunError, match="one of 2 processes"):
        choose_device()
    advance(Run(FineTune.load(tiny_job), tmp_path / "runs"), "mask")  # neither needs a device


def test_what_a_launcher_asks_for_is_out_of_sight_and_back_again(monkeypatch):
    asked = {"ACCELERATE_MIXED_PRECISION": "fp16", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    with without_launcher():
        assert not asked.keys() & os.environ.keys()
        os.environ["ACCELERATE_USE_FSDP"] = "true"
    assert {name: os.environ[name] for name in asked} == asked
    assert "ACCELERATE_USE_FSDP" not in os.environ


def launched(tiny_job, *command, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=tiny_job.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_torchrun_with_two_processes_is_told_so_in_both(tiny_job):
    ended = launched(
        tiny_job,
        *("torch.distributed.run", "--nproc_per_node", "2", "--log-dir", "logs", "--tee", "3"),
        *("-m", "tunemath", "run", "tiny.yaml"),
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode != 0
    refused = re.findall(r"error: started by torchrun as process (\d) of 2", said)
    assert set(refused) <= {"0", "1"}
    assert refused
    assert "exitcode  : 2" in said or "exitcode: 2" in said
    assert "another process is working" not in said
    assert "Traceback" not in said.split("ChildFailedError")[0].split("torch/distributed")[0]
    assert not (tiny_job.parent / "runs").exists()


def test_a_launcher_with_one_process_changes_nothing(tiny_job, sft_run):
    """Its own settings stay out of it too: the numbers are those of a plain run."""
    ended = launched(
        tiny_job,
        *("tunemath", "train", "tiny.yaml", "--json"),
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="1",
        LOCAL_WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="1",
        TORCHELASTIC_RUN_ID="none",
        ACCELERATE_MIXED_PRECISION="fp16",
        ACCELERATE_USE_CPU="true",
    )
    assert ended.returncode == 0, ended.stderr
    plain = json.loads((sft_run.folder.path / "training.json").read_text("utf-8"))
    assert json.loads(ended.stdout)["log"] == plain["log"]
