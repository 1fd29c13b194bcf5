"""Every command: its help, its output, its JSON, its exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bound_products import bind
from tunemath import __version__
from tunemath.cli import main, stages
from tunemath.contract import FineTune
from tunemath.mask import MASK_VIOLATIONS
from tunemath.pipeline import STAGES

COMMANDS = ("init", "schema", "run", *(stage.name for stage in STAGES), "try", "merge")
PRODUCTS = {
    "plan": "plan",
    "mask": "mask",
    "baselines": "baselines",
    "train": "training",
    "artefact": "artefact",
    "evaluate": "evaluation",
    "movement": "movement",
    "spectrum": "spectrum",
    "check": "checklist",
}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):
    """Run a command in this process; return its exit code, standard output and error."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


@pytest.fixture
def runs(sft_run, copied) -> Path:
    """A copy of the finished run, to be worked on."""
    return copied(sft_run)


def strict_json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(call, command):
    code, out, err = call(command, "--help")
    assert (code, err) == (0, "")
    assert "Example" in out
    assert f"tunemath {command}" in out.replace("\n", " ")
    assert call(command, "-h")[1] == out


def test_the_help_lists_every_command_and_the_exit_codes(call):
    code, out, _ = call("--help")
    assert code == 0
    for command in COMMANDS:
        assert f" {command} " in out
    flat = " ".join(out.replace("│", " ").split())
    assert "Exit codes: 0 passed, 1 a required check failed, 2 bad input, 3 not enough" in flat


def test_version(call):
    assert call("--version") == (0, f"tunemath {__version__}\n", "")


def test_unknown_commands_and_options_are_bad_input(call):
    for arguments in (["pla"], ["plan", "--jsn"], ["try"], ["plan", "--set"]):
        code, out, err = call(*arguments)
        assert (code, out) == (2, "")
        assert err
        assert "Traceback" not in err


@pytest.mark.parametrize(("command", "product"), PRODUCTS.items())
def test_a_stage_prints_its_product_as_json_and_nothing_else(
    call, shared_job, runs, command, product
):
    code, out, _ = call(command, shared_job, "--runs", runs, "--json")
    assert code == 0
    assert strict_json(out) == strict_json((runs / f"tiny/{product}.json").read_text("utf-8"))


@pytest.mark.parametrize("command", PRODUCTS)
def test_a_stage_prints_a_view_for_people(call, shared_job, runs, command):
    code, out, _ = call(command, shared_job, "--runs", runs)
    assert code == 0
    assert out.strip()
    with pytest.raises(json.JSONDecodeError):
        json.loads(out)


def test_run_prints_the_verdict(call, shared_job, runs):
    code, out, err = call("run", shared_job, "--runs", runs)
    assert code == 0
    assert "PASS" in out
    assert "done before" in err
    code, out, _ = call("run", shared_job, "--runs", runs, "--json")
    found = strict_json(out)
    assert (code, found["verdict"], found["exit_code"]) == (0, "PASS", 0)
    assert found["run"] == str(runs / "tiny")
    assert set(found["seconds"]) == {stage.name for stage in STAGES}
    assert len(found["findings"]) == len({f["check"] for f in found["findings"]}) > 10


def test_report_prints_where_it_is(call, shared_job, runs):
    code, out, _ = call("report", shared_job, "--runs", runs, "--json")
    assert code == 0
    for path in strict_json(out).values():
        assert Path(path).is_file()
    assert call("report", shared_job, "--runs", runs)[1].split() == list(strict_json(out).values())


def test_exit_code_3_when_retention_is_not_measured(call, shared_job, runs):
    code, out, _ = call(
        "check", shared_job, "--runs", runs, "--set", "evaluation.retention=null", "--json"
    )
    assert code == 3
    found = strict_json(out)
    assert (found["verdict"], found["exit_code"]) == ("INSUFFICIENT_EVIDENCE", 3)
    (finding,) = [f for f in found["findings"] if f["check"] == "retention-measured"]
    assert finding["status"] == "NOT_RUN"


def test_exit_code_1_when_a_required_check_fails(call, shared_job, runs, tmp_path):
    lines = (shared_job.parent / "train.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    items = [
        {"id": row["id"], "messages": row["messages"][:-1], "answer": "yes"} for row in rows[:8]
    ]
    task = tmp_path / "leaked.jsonl"
    task.write_text("".join(json.dumps(item) + "\n" for item in items))
    arguments = (shared_job, "--runs", runs, "--set", f"evaluation.task={task}")
    code, out, _ = call("check", *arguments, "--json")
    assert code == 1
    (failed,) = [f for f in strict_json(out)["findings"] if f["status"] == "FAIL" and f["required"]]
    assert failed["check"] == "train-eval-overlap"
    assert "8 task items" in failed["measured"]
    assert call("run", *arguments)[0] == 1


def test_set_reaches_the_plan(call, tiny_job):
    runs = tiny_job.parent / "runs"
    counts = []
    for rank in (2, 4):
        arguments = ("--set", f"space.rank={rank}", "-s", "name=ranked", "--runs", runs, "--json")
        code, out, _ = call("plan", tiny_job, *arguments)
        assert code == 0
        counts.append(strict_json(out)["parameters"]["trainable"])
    assert counts[1] == 2 * counts[0]
    assert FineTune.load(runs / "ranked/contract.yaml").space.rank == 4


# --- init and schema


def test_schema_validates_the_contract(call, shared_job):
    import yaml

    code, out, err = call("schema")
    assert (code, err) == (0, "")
    validator = jsonschema.Draft202012Validator(strict_json(out))
    values = yaml.safe_load(shared_job.read_text())
    assert validator.is_valid(values)
    assert not validator.is_valid({**values, "unknown": 1})


def test_init_writes_a_contract_that_loads_and_its_schema(call, tmp_path):
    path = tmp_path / "new/mine.yaml"
    code, out, err = call("init", path, "--train", "a.jsonl", "--task", "b.jsonl")
    assert (code, err) == (0, "")
    assert f"tunemath plan {path}" in out
    contract = FineTune.load(path)
    assert (contract.name, contract.mask.train) == ("mine", tmp_path / "new/a.jsonl")
    schema = json.loads((tmp_path / "new/finetune.schema.json").read_text())
    assert path.read_text().startswith("# yaml-language-server: $schema=finetune.schema.json\n")
    assert schema["title"] == "tunemath contract"


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_init_for_each_objective(call, tmp_path, kind):
    assert call("init", tmp_path / "c.yaml", "--objective", kind)[0] == 0
    assert FineTune.load(tmp_path / "c.yaml").objective.kind == kind


def test_init_does_not_write_over_a_file(call, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("precious")
    code, out, err = call("init", path)
    assert (code, out) == (2, "")
    assert "exists already" in err
    assert path.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"]


def test_init_takes_any_file_name(call, tmp_path):
    code, _, err = call("init", tmp_path / "my job.yaml")
    assert (code, err) == (0, "")
    assert FineTune.load(tmp_path / "my job.yaml").name == "my-job"


# --- try and merge


def test_try_by_name_and_by_folder(call, runs):
    code, out, _ = call("try", "tiny", "red 77", "--runs", runs)
    assert code == 0
    assert out.splitlines()[-1] == "tuned: yes"
    code, out, _ = call("try", runs / "tiny", "red 77", "--json")
    assert code == 0
    assert strict_json(out)["tuned"] == "yes"


def test_merge(call, runs, tmp_path):
    code, out, _ = call("merge", "tiny", "--runs", runs, "--out", tmp_path / "merged", "--json")
    assert code == 0
    proof = strict_json(out)
    assert proof["adapter_vs_reloaded_merged"]["max_logit_difference"] <= proof["tolerance"]
    assert (tmp_path / "merged/model.safetensors").is_file()
    code, _, err = call("merge", "tiny", "--runs", runs, "--out", tmp_path / "merged")
    assert code == 2
    assert "exists already" in err


def test_merge_says_how_many_items_are_answered_alike_and_what_is_a_tie(
    call, runs, tmp_path, monkeypatch
):
    merge = ("merge", "tiny", "--runs", runs, "--items", "--out")
    path = runs / "tiny/items/tuned.task.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    code, out, _ = call(*merge, tmp_path / "first")
    assert code == 0
    assert f"; {len(rows)} of {len(rows)} task items answered alike;" in " ".join(out.split())
    rows[0]["output"] = "else"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    code, _, err = call(*merge, tmp_path / "second")
    assert (code, "tuned.task.jsonl changed after evaluate was recorded" in err) == (2, True)
    bind(runs / "tiny", "evaluate", "items/tuned.task.jsonl")
    said = f"; {len(rows) - 1} of {len(rows)} task items answered alike"
    code, out, _ = call(*merge, tmp_path / "second")
    assert code == 0
    assert f"{said};" in " ".join(out.split())
    monkeypatch.setattr("tunemath.runner.answering.shortfall", lambda *_: 4e-6)
    code, out, _ = call(*merge, tmp_path / "third")
    assert code == 0
    assert f"{said}, 1 more but for rounding;" in " ".join(out.split())


@pytest.mark.parametrize("command", [("try", "nope", "hello"), ("merge", "nope")])
def test_a_run_that_is_not_there(call, runs, command):
    code, out, err = call(*command, "--runs", runs)
    assert (code, out) == (2, "")
    assert "no run at nope" in err
    assert "runs there: tiny" in err


@pytest.mark.parametrize(
    ("kind", "code"),
    [("answer_text_differs", 1), ("terminator_not_supervised", 1), ("undeclared_text", 0)],
)
def test_mask_fails_for_a_wrong_mask_and_not_for_advice(kind, code):
    counts = dict.fromkeys((*MASK_VIOLATIONS, "undeclared_text"), 0) | {kind: 3}
    assert stages._exit_code("mask", {"mask": {"violations": counts}}) == code
