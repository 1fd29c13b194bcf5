"""Whoever uses what a run trained is given what the run trained, or is told what became of it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tunemath.cli import main
from tunemath.contract import FineTune, ModelChoice
from tunemath.errors import RunError
from tunemath.pipeline import Run, advance
from tunemath.pipeline.products import verify
from tunemath.pipeline.using import ask, merge, need_update
from tunemath.runner.resolve import resolve_model

WEIGHTS, CONFIG = "adapter/adapter_model.safetensors", "adapter/adapter_config.json"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def rescale(path: Path) -> None:
    values = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**values, "lora_alpha": 9}), "utf-8")


def note(path: Path) -> None:
    values = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**values, "settings": {}}), "utf-8")


HARMED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a bit": (WEIGHTS, flip, "changed"),
    "alpha": (CONFIG, rescale, "changed"),
    "origin": ("adapter/tunemath.json", note, "changed"),
    "no weights": (WEIGHTS, Path.unlink, "is missing"),
    "no origin": ("adapter/tunemath.json", Path.unlink, "is missing"),
    "a tokenizer": ("adapter/tokenizer_config.json", lambda p: p.write_text("{}"), "was added"),
    "a template": ("adapter/chat_template.jinja", lambda p: p.write_text("x"), "was added"),
    "more weights": ("adapter/extra.safetensors", lambda p: p.write_bytes(b""), "was added"),
}
BY_RUN = [
    ["merge", "RUN", "--out", "OUT"],
    ["merge", "RUN", "--out", "OUT", "--no-probe"],
    ["try", "RUN", "red 1"],
    ["spectrum", "RUN"],
    ["spectrum", "OTHER", "--against", "RUN"],
    ["rank", "RUN"],
]
BY_STAGE = [["run"], ["train"], ["evaluate"], ["movement"], ["spectrum"], ["check"], ["report"]]
BY_FOLDER = [
    ["merge", "BASE", "ADAPTER", "--out", "OUT"],
    ["verify", "BASE", "ADAPTER", "MERGED"],
    ["unmerge", "MERGED", "ADAPTER", "--out", "OUT"],
    ["resize", "ADAPTER", "OUT", "--rank", "2"],
    ["combine", "ADAPTER", "COPY", "OUT"],
    ["combine", "COPY", "ADAPTER", "OUT"],
    ["spectrum", "ADAPTER"],
    ["spectrum", "ADAPTER", "--base", "BASE"],
    ["spectrum", "COPY", "--against", "ADAPTER"],
    ["rank", "BASE", "ADAPTER"],
]


@pytest.fixture(scope="module")
def around(sft_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's adapter in another place, and merged: what some commands want beside it."""
    folder = tmp_path_factory.mktemp("around")
    shutil.copytree(sft_run.folder.path / "adapter", folder / "copy")
    merge(sft_run, folder / "merged")
    return folder


@pytest.fixture
def command(sft_run, shared_job, around, copied, tmp_path, monkeypatch, capsys):
    """Run a command in which words in capitals stand for paths; return exit code and errors."""
    monkeypatch.chdir(tmp_path)
    runs = copied(sft_run)
    words = {
        "RUN": str(runs / "tiny"), "ADAPTER": str(runs / "tiny/adapter"), "OUT": "out",
        "BASE": str(sft_run.model.folder), "COPY": str(around / "copy"),
        "MERGED": str(around / "merged"), "OTHER": str(sft_run.folder.path),
    }  # fmt: skip

    def call(arguments: list[str]) -> tuple[int, str]:
        given = [words.get(word, word) for word in arguments]
        if arguments in BY_STAGE:
            given += [str(shared_job), "--runs", str(runs)]
        with pytest.raises(SystemExit) as ended:
            main(given)
        assert isinstance(ended.value.code, int)
        return ended.value.code, " ".join(capsys.readouterr().err.split())

    return call


@pytest.mark.parametrize("harm", ["a bit", "alpha", "a template"])
@pytest.mark.parametrize("arguments", [*BY_RUN, *BY_FOLDER, *BY_STAGE], ids=" ".join)
def test_no_command_uses_weights_that_are_not_as_they_were_trained(
    command, tmp_path, arguments, harm
):
    name, change, what = HARMED[harm]
    change(tmp_path / "runs/tiny" / name)
    code, said = command(arguments)
    assert code == 2, said
    assert name in said.replace(" ", "")
    assert "--fresh" in said
    assert arguments in BY_STAGE or what in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [BY_RUN[0], BY_FOLDER[0]], ids=" ".join)
@pytest.mark.parametrize("harm", HARMED)
def test_every_file_of_an_update_is_held(command, tmp_path, arguments, harm):
    name, change, what = HARMED[harm]
    change(tmp_path / "runs/tiny" / name)
    code, said = command(arguments)
    assert (code, f"{name} {what} after train was recorded" in said) == (2, True), said


@pytest.mark.parametrize(
    "name", ["README.md", "LICENSE", ".DS_Store", ".gitattributes", "NOTICE.txt"]
)
def test_what_only_people_read_may_be_written_beside_weights(command, tmp_path, name):
    (tmp_path / "runs/tiny/adapter" / name).write_text("mine")
    assert command(BY_RUN[1])[0] == 0
    assert command(["resize", "ADAPTER", "small", "--rank", "2", "--no-probe"])[0] == 0


@pytest.mark.parametrize("arguments", [*BY_RUN[1:4], *BY_FOLDER[:4]], ids=" ".join)
def test_an_update_that_nobody_touched_is_used(command, arguments):
    code, said = command(arguments)
    assert code == 0, said


def test_a_link_to_an_adapter_is_the_run_s(command, tmp_path):
    (tmp_path / "mine").symlink_to(tmp_path / "runs/tiny/adapter")
    flip(tmp_path / "runs/tiny" / WEIGHTS)
    code, said = command(["resize", "mine", "small", "--rank", "2"])
    assert code == 2
    assert "changed after train" in said


def test_somebody_else_s_manifest_binds_nothing(command, tmp_path):
    shutil.copytree(tmp_path / "runs/tiny/adapter", tmp_path / "theirs/adapter")
    manifest = tmp_path / "theirs/manifest.json"
    for text in ("[]", "{", '{"stages": 3}', '{"stages": {"a": 1}}', '{"name": "an extension"}'):
        manifest.write_text(text)
        code, said = command(["resize", "theirs/adapter", f"o{len(text)}", "--rank", "2"])
        assert code == 0, said


DAMAGED = {
    "no JSON": lambda manifest: "{",
    "a list": lambda manifest: [manifest],
    "no stages": lambda manifest: {"run": "tiny"},
    "stages as a list": lambda manifest: {**manifest, "stages": list(manifest["stages"])},
    "a stage without inputs": lambda manifest: of_train(manifest, inputs=None),
    "inputs that the key is not of": lambda manifest: of_train(manifest, inputs={"seed": 7}),
    "a hash that is no text": lambda manifest: of_train(manifest, products={"plan.json": 1}),
    "products as a list": lambda manifest: of_train(manifest, products=["plan.json"]),
    "a number without end": lambda manifest: {**manifest, "about": math.inf},
    "seconds without end": lambda manifest: of_train(manifest, seconds=math.inf),
}


def of_train(manifest, **values):
    stages = manifest["stages"]
    return {**manifest, "stages": {**stages, "train": {**stages["train"], **values}}}


@pytest.mark.parametrize("how", DAMAGED)
@pytest.mark.parametrize("arguments", [BY_RUN[1], BY_FOLDER[0]], ids=" ".join)
def test_a_damaged_manifest_of_a_run_is_told(command, tmp_path, arguments, how):
    path = tmp_path / "runs/tiny/manifest.json"
    found = DAMAGED[how](json.loads(path.read_text()))
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    code, said = command(arguments)
    assert (code, "manifest.json can't be read as a run's" in said) == (2, True), said


def test_products_that_answers_are_compared_with_are_held_too(sft_run, copied, tmp_path):
    run = Run(sft_run.contract, copied(sft_run))
    flip(run.folder.path / "items/tuned.task.jsonl")
    with pytest.raises(RunError, match=r"tuned\.task\.jsonl changed.*run `tunemath evaluate`"):
        merge(run, tmp_path / "out", items=True)
    flip(run.folder.path / "plan.json")
    with pytest.raises(RunError, match=r"plan\.json changed.*run `tunemath plan` again"):
        ask(run, "red 1")


@pytest.mark.parametrize(
    ("line", "edited", "said"),
    [
        ("alpha: 8", "alpha: 9", r"space\.alpha 8.* → 9"),
        ("learning_rate: 0.02", "learning_rate: 0.5", r"budget\.learning_rate 0\.02 → 0\.5"),
        ("seed: 0", "seed: 1", r"seed 0 → 1"),
    ],
)
def test_an_edited_contract_does_not_describe_what_was_trained(
    command, tmp_path, line, edited, said
):
    path = tmp_path / "runs/tiny/contract.yaml"
    text = path.read_text("utf-8")
    assert line in text
    path.write_text(text.replace(line, edited), "utf-8")
    code, told = command(BY_RUN[0])
    assert code == 2
    with pytest.raises(RunError, match=said):
        raise RunError(told)


def test_a_contract_that_differs_in_how_it_is_judged_describes_the_same_weights(
    sft_run, shared_job, copied
):
    runs = copied(sft_run)
    for override in ("evaluation.retention_margin=0.2", "budget.save_every=1"):
        need_update(Run(FineTune.load(shared_job, [override]), runs))


def test_answers_asked_otherwise_are_not_compared(sft_run, shared_job, copied, tmp_path):
    run = Run(FineTune.load(shared_job, ["evaluation.max_new_tokens=3"]), copied(sft_run))
    with pytest.raises(RunError, match=r"evaluation\.max_new_tokens 6 → 3"):
        merge(run, tmp_path / "out", items=True)
    assert merge(run, tmp_path / "out")["folder"] == str(tmp_path / "out")


def test_a_copied_run_is_the_copy_and_not_what_it_was_copied_from(command, tmp_path):
    shutil.copytree(tmp_path / "runs/tiny", tmp_path / "runs/copy")
    flip(tmp_path / "runs/tiny" / WEIGHTS)
    assert command(["merge", "copy", "--no-probe"])[0] == 0
    assert (tmp_path / "runs/copy/merged/config.json").is_file()
    assert not (tmp_path / "runs/tiny/merged").exists()


def test_training_anew_replaces_what_was_altered(sft_run, shared_job, copied, tmp_path):
    runs = copied(sft_run)
    HARMED["a template"][1](runs / "tiny/adapter/chat_template.jinja")
    with pytest.raises(RunError, match=r"chat_template\.jinja.*--fresh"):
        advance(Run(FineTune.load(shared_job), runs))
    run = Run(FineTune.load(shared_job), runs, fresh=True)
    advance(run, "train")
    need_update(run)


def test_weights_trained_whole_are_held_where_they_are_the_base_of_something_else(
    shared_job, tmp_path, around
):
    whole = ["space={method: full}", "budget.epochs=1"]
    run = Run(FineTune.load(shared_job, whole), tmp_path)
    advance(run, "train")
    weights = tmp_path / "tiny/weights"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(run.model.folder / name, weights / name)  # without them it is no model
    need_update(run)
    later = Run(FineTune.load(shared_job, [f"model={weights}", "name=later"]), tmp_path)
    advance(later, "plan")
    flip(weights / "model.safetensors")
    base = resolve_model(ModelChoice(id=str(weights)))
    with pytest.raises(RunError, match=r"weights/model\.safetensors changed"):
        verify(base, around / "copy", around / "merged")
    with pytest.raises(RunError, match=r"weights/model\.safetensors changed"):
        advance(later, "baselines")
