"""Each file of a model's folder is changed; what depends on it is done again, or refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tunemath.contract import FineTune
from tunemath.errors import RunError
from tunemath.pipeline import Run, advance

Change = Callable[[Path], object]


def with_values(**values: object) -> Change:
    def change(path: Path) -> None:
        found = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps({**found, **values}), "utf-8")

    return change


def replaced(old: str, new: str) -> Change:
    def change(path: Path) -> None:
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new), "utf-8")

    return change


def exchanged(path: Path) -> None:
    """Give two bytes' tokens each other's ids."""
    found = json.loads(path.read_text("utf-8"))
    vocab = found["model"]["vocab"]
    vocab["x"], vocab["y"] = vocab["y"], vocab["x"]
    path.write_text(json.dumps(found), "utf-8")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


ANSWERS = ["mask", "baselines", "evaluate", "check", "report"]
OTHER_MODEL, OTHER_CODEC = "model has other content", "codec has other content"
CHANGES: list[tuple[str, str, Change, list[str] | str]] = [
    ("generation_config.json", "stops", with_values(eos_token_id=[2, 5]), ANSWERS),
    ("generation_config.json", "penalty", with_values(repetition_penalty=3.0), []),
    ("generation_config.json", "version", with_values(transformers_version="5.0"), []),
    ("config.json", "stops", with_values(eos_token_id=[2, 5]), OTHER_MODEL),
    ("config.json", "epsilon", with_values(rms_norm_eps=0.1), OTHER_MODEL),
    ("config.json", "positions",
     with_values(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
     OTHER_MODEL),
    ("config.json", "dtype", with_values(dtype="bfloat16"), OTHER_MODEL),
    ("model.safetensors", "a bit", flipped, OTHER_MODEL),
    ("tokenizer.json", "ids", exchanged, OTHER_CODEC),
    ("tokenizer_config.json", "end", with_values(eos_token="<|endoftext|>"), OTHER_CODEC),
    ("tokenizer_config.json", "start", with_values(bos_token="<|endoftext|>"), OTHER_CODEC),
    ("chat_template.jinja", "words", replaced("message['content'] +", "message['content'] + ' ' +"),
     OTHER_CODEC),
]  # fmt: skip
ABSENT: list[tuple[str, str, list[str] | str]] = [
    ("chat_template.json", '{"chat_template": "x"}', []),  # the .jinja goes before it
    ("special_tokens_map.json", '{"eos_token": "<|endoftext|>"}', OTHER_CODEC),
    ("added_tokens.json", '{"<new>": 400}', []),  # tokenizer.json has them already
    ("vocab.json", "{}", []),
    ("merges.txt", "a b", []),
    ("modeling_other.py", "raise SystemExit", []),  # no code of the model's may run
    ("README.md", "text", []),
]


@pytest.fixture
def job(sft_run, shared_job, copied, tmp_path) -> Callable[[], list[str]]:
    """A finished run on a model of its own; return a call that runs it again: what was done."""
    shutil.copytree(sft_run.model.folder, tmp_path / "own")
    runs = copied(sft_run)

    def again() -> list[str]:
        done: list[str] = []
        contract = FineTune.load(shared_job, [f"model={tmp_path / 'own'}"])
        advance(
            Run(contract, runs),
            started=lambda stage, skipped: None if skipped else done.append(stage),
        )
        return done

    assert again() == ["plan", "check", "report"]  # its name is another
    assert again() == []
    return again


def expect(job: Callable[[], list[str]], expected: list[str] | str) -> None:
    if isinstance(expected, str):
        with pytest.raises(RunError, match=rf"another contract \({re.escape(expected)}"):
            job()
    else:
        assert job() == expected
        assert job() == []


@pytest.mark.parametrize(
    ("name", "change", "expected"), [(n, c, e) for n, _, c, e in CHANGES],
    ids=[f"{n} {what}" for n, what, *_ in CHANGES],
)  # fmt: skip
def test_a_changed_file_of_the_model_is_noticed(job, tmp_path, name, change, expected):
    change(tmp_path / "own" / name)
    expect(job, expected)


@pytest.mark.parametrize(("name", "text", "expected"), ABSENT, ids=[name for name, *_ in ABSENT])
def test_a_file_that_appears_is_noticed_where_it_is_read(job, tmp_path, name, text, expected):
    (tmp_path / "own" / name).write_text(text, "utf-8")
    expect(job, expected)


def test_every_file_of_a_model_is_among_these(tiny_model):
    tried = {name for name, *_ in CHANGES} | {name for name, *_ in ABSENT}
    assert {path.name for path in tiny_model.iterdir()} <= tried


def test_code_of_the_model_is_part_of_it_where_it_may_run(shared_job, sft_run, tmp_path):
    shutil.copytree(sft_run.model.folder, tmp_path / "own")
    (tmp_path / "own/modeling_own.py").write_text("x = 1\n")
    model = f"model={{id: {tmp_path / 'own'}, trust_remote_code: true}}"
    for override in (model, model):
        run = Run(FineTune.load(shared_job, [override, "budget.epochs=1"]), tmp_path / "runs")
        advance(run, "train")
    (tmp_path / "own/modeling_own.py").write_text("x = 2\n")
    with pytest.raises(RunError, match=OTHER_MODEL):
        advance(Run(FineTune.load(shared_job, [model, "budget.epochs=1"]), tmp_path / "runs"))
