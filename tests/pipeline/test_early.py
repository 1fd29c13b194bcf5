"""What can't be read, rendered or placed is found at plan, all of it at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tunemath.cli import main
from tunemath.contract import FineTune
from tunemath.errors import ContractError, DataError
from tunemath.pipeline import Run, advance, early_findings


def plan(contract: Path, *overrides: str) -> dict:
    return advance(Run(FineTune.load(contract, overrides), contract.parent / "runs"), "plan")


def change(path: Path, edit) -> None:
    """Rewrite each row of a file; ``edit`` is told its number."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for number, row in enumerate(rows, start=1):
        edit(number, row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


# --- files


def test_all_paths_that_are_not_there_are_told_at_once(tiny_job, capsys):
    names = ("train", "task", "retention")
    for name in names:
        (tiny_job.parent / f"{name}.jsonl").unlink()
    with pytest.raises(SystemExit) as end:
        main(["run", str(tiny_job), "--runs", str(tiny_job.parent / "runs")])
    assert end.value.code == 2
    head, *lines = capsys.readouterr().err.splitlines()
    assert head == "error: 3 of the contract's data files are refused:"
    for line, field, name in zip(
        lines, ("mask.train", "evaluation.task", "evaluation.retention"), names, strict=True
    ):
        assert (
            line == f"  {field}: {tiny_job.parent / name}.jsonl does not exist; give a JSONL file"
        )
    assert not (tiny_job.parent / "runs/tiny/contract.yaml").exists()


def test_a_bad_path_and_bad_rows_are_told_at_once(tiny_job):
    (tiny_job.parent / "train.jsonl").unlink()
    change(tiny_job.parent / "task.jsonl", lambda n, row: row.update(answer=n))
    with pytest.raises(DataError) as caught:
        plan(tiny_job)
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 of the contract's data files are refused:"
    assert lines[1].startswith("  mask.train: ")
    assert lines[2] == "  evaluation.task: task.jsonl: 12 of 12 rows are refused; the first 10:"
    assert len(lines) == 13


@pytest.mark.parametrize(
    ("one", "other"), [("train", "task"), ("train", "retention"), ("task", "retention")]
)
def test_two_files_with_one_content_are_refused(tiny_job, one, other):
    """Pairs are rows as well as items, so that any two files can be alike."""
    folder = tiny_job.parent
    files = {"train": "pairs.jsonl", "task": "held.jsonl", "retention": "retention.jsonl"}
    shutil.copy(folder / files[one], folder / "copy.jsonl")
    files[other] = "copy.jsonl"
    fields = {"train": "mask", "task": "evaluation", "retention": "evaluation"}
    overrides = [f"{fields[name]}.{name}={folder / file}" for name, file in files.items()]
    with pytest.raises(DataError, match=rf"{other} \(.*copy.jsonl\) has the content of .*{one}"):
        plan(tiny_job, "objective.kind=dpo", *overrides)


@pytest.mark.parametrize(
    ("field", "file", "words"),
    [
        ("evaluation.retention", "task.jsonl", "evaluation.retention is evaluation.task itself"),
        ("evaluation.retention", "train.jsonl", "evaluation.retention is the training file"),
        ("evaluation.task", "train.jsonl", "evaluation.task is the training file itself"),
    ],
)
def test_one_file_for_two_purposes_is_refused(tiny_job, field, file, words):
    with pytest.raises(ContractError, match=words):
        FineTune.load(tiny_job, [f"{field}={tiny_job.parent / file}"])


# --- rendering


def test_references_with_control_tokens_are_refused_at_plan(tiny_job):
    def spoil(number: int, row: dict) -> None:
        if number in (2, 5):
            row["answer"] = "<|im_start|>x"

    change(tiny_job.parent / "task.jsonl", spoil)
    with pytest.raises(DataError) as caught:
        plan(tiny_job)
    head, *lines = str(caught.value).splitlines()
    assert head == "task.jsonl: 2 of 12 items are refused:"
    assert [line.split(": ")[0] for line in lines] == ["  task.jsonl:2", "  task.jsonl:5"]
    assert all("'<|im_start|>', a control token" in line for line in lines)


def test_choices_with_control_tokens_are_refused_at_plan(tiny_job):
    def spoil(number: int, row: dict) -> None:
        if number == 3:
            row["choices"][3] = "c<|im_end|>"

    change(tiny_job.parent / "retention.jsonl", spoil)
    with pytest.raises(DataError, match=r"^retention.jsonl:3: .*'<\|im_end\|>'"):
        plan(tiny_job)


def test_examples_that_the_template_refuses_before_an_item_are_refused_at_plan(tiny_job):
    """Alone the prompts are fine; with the examples before them they are too many turns."""
    copy = tiny_job.parent / "strict"
    shutil.copytree(tiny_job.parent / "model", copy)
    template = (copy / "chat_template.jinja").read_text()
    refuse = "{% if messages | length > 3 %}{{ raise_exception('too many turns') }}{% endif %}"
    (copy / "chat_template.jinja").write_text(refuse + template)
    with pytest.raises(DataError, match=r"task.jsonl: 12 of 12 items .*\n.*too many turns"):
        plan(tiny_job, f"model={copy}")
    plan(tiny_job, f"model={copy}", "evaluation.few_shot=0")


# --- positions


@pytest.fixture
def learned(tiny_job) -> str:
    """Put a GPT-2 with 120 learned positions in the model's place."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tiny_job.parent / "gpt2"
    shutil.copytree(tiny_job.parent / "model", folder)
    config = GPT2Config(
        vocab_size=259, n_embd=16, n_layer=1, n_head=2, n_positions=120,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return f"model={folder}"


def longest(contract: Path, model: str) -> dict:
    return plan(contract, model)["plan"]["positions"]


def test_items_end_with_the_positions_of_a_table(tiny_job, learned):
    found = longest(tiny_job, learned)
    assert (found["limit"], found["ends"]) == (120, True)
    # The longest prompt: S, two examples, "brown 103" and the turns' marks, counted as bytes.
    most = found["lengths"]["task items"]["longest"]
    room = 120 - most
    plan(tiny_job, learned, f"evaluation.max_new_tokens={6 + room}")
    with pytest.raises(DataError, match=r"take 121 positions, and the model ends at 120") as caught:
        plan(tiny_job, learned, f"evaluation.max_new_tokens={7 + room}")
    assert "lower evaluation.few_shot or evaluation.max_new_tokens" in str(caught.value)


def test_rows_beyond_a_table_are_told_at_once(tiny_job, learned):
    def lengthen(number: int, row: dict) -> None:
        if number in (4, 9):
            row["messages"][1]["content"] = "x" * 200

    change(tiny_job.parent / "train.jsonl", lengthen)
    with pytest.raises(DataError) as caught:
        plan(tiny_job, learned, "mask.max_length=400", "evaluation.few_shot=0")
    head, *lines = str(caught.value).splitlines()
    assert head == "train.jsonl: 2 of 24 rows are refused:"
    assert [line.split(": ")[0] for line in lines] == ["  train.jsonl:4", "  train.jsonl:9"]
    assert all("mask.max_length: 120" in line for line in lines)
    dropped = ("mask.too_long=drop", "mask.max_length=120", "evaluation.few_shot=0")
    assert plan(tiny_job, learned, *dropped)["plan"]["data"]["train_rows"] == 22


def test_the_remedy_leaves_room_for_virtual_tokens(tiny_job, learned):
    def lengthen(number: int, row: dict) -> None:
        if number == 4:
            row["messages"][1]["content"] = "x" * room

    alone = longest(tiny_job, learned)["lengths"]["training rows"]
    room = 118 - alone["longest"] + len("brown 100")
    change(tiny_job.parent / "train.jsonl", lengthen)
    prompt = ("space={method: prompt, length: 5}", "evaluation.few_shot=0", "mask.max_length=400")
    with pytest.raises(DataError, match=r"and 5 virtual tokens.*mask.max_length: 115"):
        plan(tiny_job, learned, *prompt)
    dropped = ("mask.too_long=drop", "mask.max_length=115")
    assert plan(tiny_job, learned, *prompt, *dropped)["plan"]["data"]["train_rows"] == 23


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_virtual_tokens_take_positions(tiny_job, method):
    alone = plan(tiny_job)["plan"]["positions"]
    space = "space={method: " + method + ", length: 5}"
    found = plan(tiny_job, space)["plan"]["positions"]
    assert found["virtual"] == 5
    rows = alone["lengths"]["training rows"]["longest"]
    assert found["lengths"]["training rows"]["longest"] == rows + 5


def test_rotary_positions_beyond_what_was_trained_are_advice(tiny_job):
    folder = tiny_job.parent / "short"
    shutil.copytree(tiny_job.parent / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 42}))
    evidence = plan(tiny_job, f"model={folder}")
    found = {finding.check: finding for finding in early_findings(evidence)}["within-positions"]
    assert (found.status.value, found.required) == ("FAIL", False)
    assert "training rows" in found.measured
    assert "42 positions" in found.measured
    assert found.where.startswith("train.jsonl:")


def test_the_largest_length_is_within_the_positions(tiny_job):
    assert plan(tiny_job)["plan"]["memory"]["largest"]["tokens"] == 512
    space = "space={method: prefix, length: 16}"
    assert plan(tiny_job, space)["plan"]["memory"]["largest"]["tokens"] == 496


# --- what a person may not have meant


@pytest.mark.parametrize("file", ["train.jsonl", "task.jsonl"])
def test_a_system_message_on_one_side_only_is_said(tiny_job, file):
    assert plan(tiny_job)["plan"]["notices"] == []
    change(tiny_job.parent / file, lambda n, row: row["messages"].pop(0))
    (notice,) = plan(tiny_job)["plan"]["notices"]
    has, lacks = ("training", "task") if file == "task.jsonl" else ("task", "training")
    assert notice.startswith(f"every {has} ")
    assert f"no {lacks} " in notice


@pytest.mark.parametrize("items", [1, 3, 5])
def test_too_few_items_have_no_smallest_effect(tiny_job, items):
    for name in ("task", "retention"):
        path = tiny_job.parent / f"{name}.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:items]))
    power = plan(tiny_job)["plan"]["power"]
    for name in ("task", "retention"):
        assert (power[name]["items"], power[name]["smallest_difference"]) == (items, None)
