"""A run stops before it spends where a required check can no longer pass, and nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tunemath.cli import main
from tunemath.contract import FineTune
from tunemath.errors import RunError
from tunemath.findings import Verdict
from tunemath.pipeline import Run, StoppedError, advance

THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHORT = ["budget.epochs=1", "evaluation.retention=null", "evaluation.few_shot=0"]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


def wrong_mask(folder: Path) -> list[str]:
    """Take a model whose template writes something before each answer."""
    copy = folder / "thinking"
    shutil.copytree(folder / "model", copy)
    (copy / "chat_template.jinja").write_text(THINKING)
    return [f"model={copy}"]


def leaked(folder: Path) -> list[str]:
    """Ask in the evaluation what the first eight rows answer."""
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    items = [{"messages": row["messages"][:-1], "answer": "yes"} for row in rows[:8]]
    (folder / "task.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return []


def few_items(folder: Path) -> list[str]:
    """Leave three task items, on which exact McNemar's p is 0.25 at the least."""
    path = folder / "task.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    return []


DECIDED = {
    "a wrong mask": (wrong_mask, "answer-mask", Verdict.FAIL, 1),
    "leaked items": (leaked, "train-eval-overlap", Verdict.FAIL, 1),
    "too few items": (few_items, "enough-items", Verdict.INSUFFICIENT_EVIDENCE, 3),
}


def as_options(overrides: list[str]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


@pytest.mark.parametrize("until", ["baselines", "train", "report"])
@pytest.mark.parametrize("name", DECIDED)
def test_what_is_decided_stops_before_anything_is_spent(tiny_job, name, until):
    spoil, check, verdict, _ = DECIDED[name]
    run = Run(FineTune.load(tiny_job, spoil(tiny_job.parent)), tiny_job.parent / "runs")
    with pytest.raises(StoppedError, match=rf"{check}: .*go_on=True \(--continue\)") as caught:
        advance(run, until)
    assert [finding.check for finding in caught.value.findings] == [check]
    assert (caught.value.verdict, caught.value.after) == (verdict, "mask")
    assert isinstance(caught.value, RunError)
    assert set(run.folder.manifest()["stages"]) == {"plan", "mask"}
    checklist = run.folder.read("checklist.json")
    assert checklist["verdict"] == verdict.value
    statuses = {finding["check"]: finding["status"] for finding in checklist["findings"]}
    assert statuses["trainable-count"] == "NOT_RUN"


@pytest.mark.parametrize("name", DECIDED)
def test_run_tells_the_findings_and_exits_with_the_verdict(call, tiny_job, name):
    spoil, check, verdict, code = DECIDED[name]
    options = as_options(spoil(tiny_job.parent))
    arguments = ("run", tiny_job, "--runs", tiny_job.parent / "runs", *options)
    found, out, err = call(*arguments)
    assert found == code
    text = " ".join(out.split())
    for word in (check, "measured", "threshold", "where", "what to do", "--continue"):
        assert word in text
    assert "nothing was trained" in text
    assert "Traceback" not in err
    found, out, _ = call(*arguments, "--json")
    told = json.loads(out)
    assert (found, told["exit_code"]) == (code, code)
    assert set(told) == {"run", "verdict", "exit_code", "stopped_after", "findings"}
    assert (told["verdict"], told["stopped_after"]) == (verdict.value, "mask")
    assert [finding["check"] for finding in told["findings"]] == [check]


def test_all_that_is_decided_is_told_at_once(tiny_job):
    folder = tiny_job.parent
    overrides = wrong_mask(folder)
    leaked(folder)
    few_items(folder)
    with pytest.raises(StoppedError) as caught:
        advance(Run(FineTune.load(tiny_job, overrides), folder / "runs"))
    found = [finding.check for finding in caught.value.findings]
    assert found == ["answer-mask", "train-eval-overlap", "enough-items"]
    assert caught.value.verdict is Verdict.FAIL


def test_repairing_the_data_and_the_same_command_go_on(tiny_job):
    folder = tiny_job.parent
    good = (folder / "task.jsonl").read_text()
    leaked(folder)
    with pytest.raises(StoppedError):
        advance(Run(FineTune.load(tiny_job, SHORT), folder / "runs"))
    (folder / "task.jsonl").write_text(good)
    evidence = advance(Run(FineTune.load(tiny_job, SHORT), folder / "runs"), "baselines")
    assert evidence["baselines"]["arms"]["base"]["task"]["items"] == 12


def test_going_on_ends_with_the_same_verdict_and_is_then_not_asked_again(call, tiny_job):
    folder = tiny_job.parent
    leaked(folder)
    arguments = ("run", tiny_job, "--runs", folder / "runs", *as_options(SHORT), "--json")
    assert call(*arguments)[0] == 1
    code, out, _ = call(*arguments, "--continue")
    found = json.loads(out)
    assert (code, found["verdict"]) == (1, "FAIL")
    assert "scorecard" in found
    code, out, _ = call(*arguments)  # nothing is left to be spent
    assert (code, json.loads(out)["findings"]) == (1, found["findings"])


def test_advice_stops_nothing(tiny_job):
    """Rows under a template with a date, an end of turn that no server stops at, no retention."""
    folder = tiny_job.parent
    copy = folder / "advised"
    shutil.copytree(folder / "model", copy)
    template = (copy / "chat_template.jinja").read_text()
    dated = "{{ 'Today is ' + strftime_now('%d %b %Y') + '\n' }}" + template
    (copy / "chat_template.jinja").write_text(dated)
    run = Run(FineTune.load(tiny_job, [f"model={copy}", *SHORT]), folder / "runs")
    evidence = advance(run, "baselines")
    assert evidence["mask"]["violations"]["clock_dependent"] == 24
    assert "baselines" in evidence


def test_plan_and_mask_say_it_and_do_not_stop(call, tiny_job):
    few_items(tiny_job.parent)
    runs = ("--runs", tiny_job.parent / "runs")
    code, out, _ = call("plan", tiny_job, *runs)
    text = " ".join(out.split())
    assert code == 0
    assert "Detectable, task nothing on 3 items" in text
    assert "enough-items" in text
    assert "give 6 task items or more" in text
    leaked(tiny_job.parent)
    code, out, _ = call("mask", tiny_job, *runs)
    text = " ".join(out.split())
    assert code == 0
    assert "Rows shared with the task items 8" in text
    assert "remove these rows from the training file" in text
