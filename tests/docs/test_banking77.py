"""What examples/banking77/prepare.py makes from Banking77 and ARC-Easy."""

from __future__ import annotations

import doctest
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from processes import finished
from tunemath.contract import FineTune
from tunemath.pipeline import Run, advance

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "banking77" / "prepare.py"
DATA = ROOT.parent / "shared" / "data"
SOURCES = ("banking77_train.jsonl", "banking77_test.jsonl", "arc_easy_test.jsonl")
MADE = ("banking77.yaml", "train.jsonl", "test.jsonl", "retention.jsonl")

needs_data = pytest.mark.skipif(
    not all((DATA / name).is_file() for name in SOURCES),
    reason=f"needs {', '.join(SOURCES)} in ../shared/data, which the project does not ship",
)


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("banking77_prepare", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


def run_script(*arguments: object, seed: str = "0") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    return finished([sys.executable, SCRIPT, *arguments], env=environment)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("banking77")
    done = run_script(DATA, out)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"next: tunemath run {out / 'banking77.yaml'}\n"
    return out


@pytest.fixture(scope="module")
def run(made: Path, tiny_model: Path) -> Run:
    """The contract with the tiny model, whose tokens are bytes, so that rows are longer."""
    overrides = ["mask.max_length=512", f"model={tiny_model}"]
    return Run(FineTune.load(made / "banking77.yaml", overrides), made / "runs")


@needs_data
def test_the_same_data_give_the_same_bytes(made: Path, tmp_path: Path):
    assert run_script(DATA, tmp_path, seed="1").returncode == 0
    for name in MADE:
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()


@needs_data
def test_the_contract_is_the_one_described(made: Path):
    contract = FineTune.load(made / "banking77.yaml")
    assert contract.mask.train == made / "train.jsonl"
    assert (contract.space.method, contract.space.rank) == ("lora", 8)
    assert (contract.budget.epochs, contract.budget.batch_size) == (2, 16)
    assert contract.budget.learning_rate == 2e-3
    assert contract.evaluation.few_shot == len(script.INTENTS) == 12
    assert contract.evaluation.retention_margin == 0.10
    assert contract.evaluation.max_new_tokens == 16


@needs_data
def test_rows_carry_the_label_that_their_text_has_in_the_source(made: Path):
    for source, name, answer in (
        ("banking77_train.jsonl", "train.jsonl", "completion"),
        ("banking77_test.jsonl", "test.jsonl", "answer"),
    ):
        labels = {(words(row["text"]), words(row["label"])) for row in rows(DATA / source)}
        assert {(words(row["prompt"]), row[answer]) for row in rows(made / name)} <= labels
    counts = Counter(row["completion"] for row in rows(made / "train.jsonl"))
    assert set(counts.values()) == {40}
    held = Counter(row["answer"] for row in rows(made / "test.jsonl"))
    assert held.keys() == counts.keys()
    assert sum(held.values()) == 150
    assert set(held.values()) == {12, 13}


@needs_data
def test_no_training_text_is_anywhere_in_the_test_file(made: Path):
    train = [words(row["prompt"]) for row in rows(made / "train.jsonl")]
    held = [words(row["prompt"]) for row in rows(made / "test.jsonl")]
    assert len(set(train)) == 480
    assert len(set(held)) == 150
    assert not set(train) & {words(row["text"]) for row in rows(DATA / "banking77_test.jsonl")}


@needs_data
def test_retention_items_are_short_questions_of_arc_easy_with_its_answers(made: Path):
    source = {row["question"]: row for row in rows(DATA / "arc_easy_test.jsonl")}
    items = rows(made / "retention.jsonl")
    assert len({item["prompt"] for item in items}) == 300
    for item in items:
        assert item["choices"] == source[item["prompt"]]["choices"]
        assert item["answer"] == source[item["prompt"]]["answer"]
        assert len(item["choices"]) == 4
        assert len(f"{item['prompt']} {' '.join(item['choices'])}".split()) <= 40


@needs_data
def test_the_mask_room_certifies_every_row(run: Run):
    mask = advance(run, "mask")["mask"]
    assert mask["rows"] == 480
    assert not any(mask["violations"].values())
    assert {name: part["exact"] for name, part in mask["overlap"].items()} == {
        "task": 0,
        "retention": 0,
    }


@needs_data
def test_the_prompt_only_baseline_is_shown_each_intent_once(run: Run):
    answers = [turn.content for turn in run.few_shot if turn.role == "assistant"]
    assert sorted(answers) == sorted(intent.replace("_", " ") for intent in script.INTENTS)


def test_copies_that_differ_in_case_and_punctuation_are_dropped():
    train = [
        {"text": "Where is my card?", "label": "card_arrival"},
        {"text": "where is  my card", "label": "card_arrival"},
        {"text": "How old must I be?", "label": "age_limit"},
        {"text": "Top up, please", "label": "top_up_failed"},
    ]
    test = [{"text": "HOW OLD must I be", "label": "age_limit"}]
    texts = script.by_intent(train, without=test)
    assert texts["card_arrival"] == ["Where is my card?"]
    assert texts["age_limit"] == []
    assert texts.keys() == set(script.INTENTS)
    assert doctest.testmod(script).attempted > 0
    assert doctest.testmod(script).failed == 0


def test_a_missing_source_is_one_line_and_exit_code_2(tmp_path: Path):
    done = run_script(tmp_path, tmp_path / "out")
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*banking77_train\.jsonl does not exist; .*\n", done.stderr)
    assert not (tmp_path / "out").exists()
