"""A whole run on the tiny model, held against transformers, PEFT, NumPy and plain counting."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from tunemath.checks import Checklist
from tunemath.contract import FineTune
from tunemath.pipeline import STAGES, Run, advance

PRODUCTS = (
    "contract.yaml",
    "plan.json",
    "mask.json",
    "baselines.json",
    "training.json",
    "probe.safetensors",
    "artefact.json",
    "adapter/tunemath.json",
    "evaluation.json",
    "movement.json",
    "spectrum.json",
    "scorecard.json",
    "checklist.json",
    "manifest.json",
    "report.html",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "adapter/README.md",
    *(f"items/{a}.{s}.jsonl" for a in ("base", "prompted", "tuned") for s in ("task", "retention")),
)


@pytest.fixture(params=["sft_run", "dpo_run"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.getfixturevalue(request.param)


def strict(path: Path) -> Any:
    """Read JSON as any other program would: NaN and infinity are not JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path} contains {name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def items_of(run: Run, arm: str, name: str) -> list[dict]:
    lines = (run.folder.path / f"items/{arm}.{name}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_product_is_there_and_nothing_else(run):
    found = {
        path.relative_to(run.folder.path).as_posix()
        for path in run.folder.path.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    assert found == set(PRODUCTS)
    for name in PRODUCTS:
        if name.endswith(".json"):
            strict(run.folder.path / name)


def test_the_manifest_binds_every_product_to_its_content(run):
    manifest = strict(run.folder.path / "manifest.json")
    assert list(manifest["stages"]) == [stage.name for stage in STAGES]
    bound = {}
    for stage in manifest["stages"].values():
        bound |= stage["products"]
    assert set(PRODUCTS) - bound.keys() == {"contract.yaml", "manifest.json"}
    for name, sha in bound.items():
        assert hashlib.sha256((run.folder.path / name).read_bytes()).hexdigest() == sha


def test_every_check_has_its_finding_and_the_verdict_is_pass(run):
    checklist = run.evidence()["checklist"]
    assert [f["check"] for f in checklist["findings"]] == [c.id for c in Checklist().items]
    statuses = {f["check"]: f["status"] for f in checklist["findings"]}
    required = {f["status"] for f in checklist["findings"] if f["required"]}
    assert required == {"PASS"}, statuses
    assert (checklist["verdict"], checklist["exit_code"]) == ("PASS", 0)


def test_the_plan_the_live_model_and_peft_count_alike(run):
    base = AutoModelForCausalLM.from_pretrained(run.model.folder)
    tuned = PeftModel.from_pretrained(base, run.folder.path / "adapter", is_trainable=True)
    trainable, total = tuned.get_nb_trainable_parameters()
    evidence = run.evidence()
    assert evidence["plan"]["parameters"]["trainable"] == trainable
    assert evidence["plan"]["parameters"]["total"] == total
    counted = evidence["training"]["trainable"]
    assert {counted[key] for key in ("planned", "live", "peft")} == {trainable}


def test_scores_are_the_counts_of_the_items(run):
    evidence = run.evidence()
    for arm in ("base", "prompted", "tuned"):
        holder = evidence["evaluation" if arm == "tuned" else "baselines"]["arms"][arm]
        for name in ("task", "retention"):
            rows = items_of(run, arm, name)
            assert holder[name]["correct"] == sum(row["score"] for row in rows)
            assert holder[name]["score"] == sum(row["score"] for row in rows) / len(rows)
            card = evidence["scorecard"]["arms"][arm][name]
            assert (card["correct"], card["items"]) == (holder[name]["correct"], len(rows))
            base = items_of(run, "base", name)
            assert [(r["id"], r["reference"]) for r in rows] == [
                (r["id"], r["reference"]) for r in base
            ]
    data = evidence["plan"]["data"]
    assert (data["task_items"], data["retention_items"]) == (12, 40)


def test_the_tuned_answers_are_what_transformers_and_peft_give(sft_run):
    tokenizer = AutoTokenizer.from_pretrained(sft_run.model.folder)
    model = AutoModelForCausalLM.from_pretrained(sft_run.model.folder)
    model = PeftModel.from_pretrained(model, sft_run.folder.path / "adapter").eval()
    items = json_lines(sft_run.contract.evaluation.task)
    for item, written in zip(items, items_of(sft_run, "tuned", "task"), strict=True):
        inputs = tokenizer.apply_chat_template(
            item["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        text = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert written["output"] == text.strip()
        assert written["score"] == int(text.strip() == item["answer"])


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_choices_are_scored_by_summed_log_probabilities(sft_run):
    tokenizer = AutoTokenizer.from_pretrained(sft_run.model.folder)
    model = AutoModelForCausalLM.from_pretrained(sft_run.model.folder)
    items = json_lines(sft_run.contract.evaluation.retention)
    for item, written in zip(items[:6], items_of(sft_run, "base", "retention"), strict=False):
        stem = tokenizer.apply_chat_template(
            item["messages"], add_generation_prompt=True, return_dict=False
        )
        values = []
        for choice in item["choices"]:  # "cc" begins "ccc", so terminators tell them apart
            ids = tokenizer.encode(choice + "<|im_end|>", add_special_tokens=False)
            with torch.no_grad():
                table = model(torch.tensor([[*stem, *ids]])).logits[0].double().log_softmax(-1)
            values.append(sum(float(table[len(stem) + k - 1, t]) for k, t in enumerate(ids)))
        assert written["logprobs"] == pytest.approx(values, abs=1e-4)
        assert written["output"] == item["choices"][int(np.argmax(values))]
        assert written["reference"] == item["choices"][item["answer"]]


def test_movement_is_the_pooled_kl_of_the_saved_adapter(run):
    tokenizer = AutoTokenizer.from_pretrained(run.model.folder)
    base = AutoModelForCausalLM.from_pretrained(run.model.folder)
    model = PeftModel.from_pretrained(base, run.folder.path / "adapter").eval()
    total, positions = 0.0, 0
    for item in json_lines(run.contract.evaluation.task):
        stem = tokenizer.apply_chat_template(
            item["messages"], add_generation_prompt=True, return_dict=False
        )
        answer = item.get("answer") or item["chosen"]
        ids = [*stem, *tokenizer.encode(answer + "<|im_end|>", add_special_tokens=False)]
        with torch.no_grad():
            p = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            with model.disable_adapter():
                q = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1)[len(stem) - 1 : -1]
        total, positions = total + float(kl.sum()), positions + len(kl)
    found = run.evidence()["movement"]["task"]
    assert found["positions"] == positions
    assert found["kl"] == pytest.approx(total / positions, rel=1e-3)
    assert found["low"] < found["kl"] < found["high"]
    pooled = sum(place["kl"] * place["rows"] for place in found["by_position"]) / positions
    assert pooled == pytest.approx(found["kl"], rel=1e-9)


def test_the_spectrum_is_that_of_the_dense_update(run):
    tensors = load_file(run.folder.path / "adapter/adapter_model.safetensors")
    modules = run.evidence()["spectrum"]["modules"]
    assert len(modules) == len(tensors) // 2 == 14
    for module in modules:
        key = f"base_model.model.{module['name']}"
        a, b = (tensors[f"{key}.lora_{x}.weight"].astype(np.float64) for x in "AB")
        delta = 2.0 * b @ a  # s = α/r = 8/4
        values = np.linalg.svd(delta, compute_uv=False)[:4]
        np.testing.assert_allclose(module["singular_values"], values, rtol=1e-6, atol=1e-9)
        assert module["frobenius"] == pytest.approx(np.linalg.norm(delta))
        assert module["shape"] == list(delta.shape)


def test_training_saw_every_row_and_every_answer_token(sft_run, dpo_run):
    for run, rows, tokens in ((sft_run, 24, 4), (dpo_run, 16 * 2, 3)):
        training = run.evidence()["training"]
        assert training["rows_seen"] == {
            "expected": rows * 6,
            "certified": rows * 6,
            "uncertified": 0,
            "miscounted": 0,
        }
        # yes + terminator is 4 tokens, q + terminator 2: pairs hold 3 on average
        assert training["supervised_tokens"] == rows * 6 * tokens
        assert training["steps"] == training["steps_planned"] == len(training["log"])
        assert training["log"][-1]["loss"] < 0.2 * training["log"][0]["loss"]
        assert training["tensors"]["frozen_changed"] == training["tensors"]["unmoved"] == []


def test_dpo_starts_at_ln_2_and_ends_with_margins(dpo_run):
    training = dpo_run.evidence()["training"]
    assert training["step0_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert training["log"][0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert training["log"][0]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert training["log"][-1]["margin"] > 10
    assert training["log"][-1]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        ("cosine", get_cosine_schedule_with_warmup),
        ("linear", get_linear_schedule_with_warmup),
        ("constant", get_constant_schedule_with_warmup),
    ],
)
def test_learning_rates_are_transformers_own(tiny_job, schedule, make):
    settings = [f"budget.schedule={schedule}", "budget.warmup_ratio=0.3", "budget.epochs=3"]
    contract = FineTune.load(tiny_job, settings)
    evidence = advance(Run(contract, tiny_job.parent / "runs"), "train")
    advance(Run(contract, tiny_job.parent / "runs"), "plan")
    steps, warmup = 9, 3  # 24 rows / 8 · 3 epochs; 0.3 of 9 rounded up
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.02)
    scheduler = make(optimizer, warmup, *([] if schedule == "constant" else [steps]))
    expected = []
    for _ in range(steps):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    logged = [entry["learning_rate"] for entry in evidence["training"]["log"]]
    assert logged == pytest.approx(expected, rel=1e-6, abs=1e-12)
    plan = json.loads((tiny_job.parent / "runs/tiny/plan.json").read_text())
    assert plan["schedule"]["learning_rates"] == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert (plan["schedule"]["steps"], plan["schedule"]["warmup_steps"]) == (steps, warmup)
