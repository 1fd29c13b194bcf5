"""A run in Python: how it shows itself, its results as records and as data frames."""

from __future__ import annotations

import dataclasses
import json
import sys
from html.parser import HTMLParser
from statistics import fmean

import pytest

import tunemath as tm
from tunemath.errors import ContractError, RunError
from tunemath.findings import Finding, Status, Verdict
from tunemath.pipeline import Results, Run
from tunemath.report import run_card


class Page(HTMLParser):
    """Which elements an HTML fragment has, and the text of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(run: Run, name: str):
    return json.loads((run.folder.path / name).read_text("utf-8"))


def test_a_run_is_made_of_a_path_and_overrides(tiny_job, tmp_path):
    run = Run(tiny_job, tmp_path / "runs", overrides=["space.rank=2"])
    assert run.contract == tm.FineTune.load(tiny_job, ["space.rank=2"])
    assert Run(str(tiny_job)).contract == tm.FineTune.load(tiny_job)
    with pytest.raises(ContractError, match="overrides are for a contract's file"):
        Run(run.contract, overrides=["space.rank=2"])


def test_a_run_says_what_it_is_and_how_far(tiny_job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run(tiny_job)
    assert repr(run).startswith("<Run tiny in runs/tiny: no verdict yet, 0 of ")
    tm.advance(run, "mask")
    assert repr(run).startswith("<Run tiny in runs/tiny: no verdict yet, 1 of ")
    tm.advance(run, "plan")
    assert repr(run).startswith("<Run tiny in runs/tiny: no verdict yet, 2 of ")
    page = Page(run._repr_html_())
    assert "table" not in page.tags
    other = Run(tiny_job, overrides=["space.rank=2"])
    assert repr(other).startswith("<Run tiny in runs/tiny: no verdict yet, 0 of ")


def test_a_finished_run_shows_verdict_scores_and_findings(sft_run):
    assert repr(sft_run).endswith(": passed, all stages done>")
    page = Page(sft_run._repr_html_())
    said = " ".join(" ".join(page.texts).split())
    card = read(sft_run, "scorecard.json")
    assert card["sentence"] in said
    for arm in ("Base", "2 examples in the prompt", "Tuned"):
        assert arm in said
    assert page.tags.count("table") >= 2
    assert {"script", "style", "img", "link", "iframe"}.isdisjoint(page.tags)
    assert sft_run.results._repr_html_() == sft_run._repr_html_()
    assert "scores, differences, findings" in repr(sft_run.results)


def test_what_did_not_pass_is_shown_with_what_to_do(sft_run):
    finding = {"check": "made-up", "status": "FAIL", "required": True, "action": "do that"}
    evidence = {**sft_run.evidence()}
    evidence["checklist"] = {**evidence["checklist"], "findings": [finding], "verdict": "FAIL"}
    said = " ".join(Page(run_card(evidence, sft_run.folder.path)).texts)
    assert "0 of 1 findings pass:" in said
    assert "made-up" in said
    assert "do that" in said


def test_text_of_the_evidence_stays_text(sft_run):
    bad = "<script>alert(1)</script><img src=x onerror=alert(1)>\u202e"

    def spoiled(value):
        if isinstance(value, dict):
            return {key: spoiled(each) for key, each in value.items()}
        if isinstance(value, list):
            return [spoiled(each) for each in value]
        return bad if isinstance(value, str) else value

    card = run_card(spoiled(sft_run.evidence()), sft_run.folder.path)
    page = Page(card)
    assert {"script", "img"}.isdisjoint(page.tags)
    assert "\u202e" not in card


def test_results_are_records_with_the_products_numbers(sft_run):
    results = sft_run.results
    assert isinstance(results, Results)
    assert results.verdict is Verdict.PASS
    found = read(sft_run, "scorecard.json")
    tuned = next(s for s in results.scores if (s.arm, s.set) == ("tuned", "task"))
    assert dataclasses.asdict(tuned) == {
        "arm": "tuned",
        "set": "task",
        **found["arms"]["tuned"]["task"],
    }
    assert len(results.scores) == 6
    difference = results.differences[0]
    raw = found["differences"]["task"]["tuned - base"]
    assert (difference.difference, difference.low, difference.p) == (
        raw["difference"],
        raw["low"],
        raw["p"],
    )
    assert all(isinstance(each, Finding) for each in results.findings)
    assert {each.status for each in results.findings} <= set(Status)
    checks = read(sft_run, "checklist.json")["findings"]
    assert [each.check for each in results.findings] == [each["check"] for each in checks]
    training = read(sft_run, "training.json")
    assert [step.loss for step in results.log] == [each["loss"] for each in training["log"]]
    moved = read(sft_run, "movement.json")
    assert [each.kl for each in results.movement] == [moved[n]["kl"] for n in ("task", "retention")]
    with pytest.raises(dataclasses.FrozenInstanceError):
        tuned.score = 1.0


def test_dpo_has_margins(dpo_run):
    step = dpo_run.results.log[-1]
    assert step.margin is not None
    assert step.accuracy is not None


@pytest.mark.parametrize("table", Results.TABLES)
def test_a_frame_has_a_row_a_record(sft_run, table):
    pandas = pytest.importorskip("pandas")
    frame = sft_run.results.frame(table)
    records = getattr(sft_run.results, table)
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == [field.name for field in dataclasses.fields(records[0])]
    assert len(frame) == len(records) > 0


def test_the_items_are_those_that_the_scores_count(sft_run):
    pytest.importorskip("pandas")
    items = sft_run.results.frame("items")
    means = items.groupby(["arm", "set"])["score"].mean()
    for score in sft_run.results.scores:
        assert means[score.arm, score.set] == pytest.approx(score.score)
        mine = [a for a in sft_run.results.items if (a.arm, a.set) == (score.arm, score.set)]
        assert fmean(each.score for each in mine) == pytest.approx(score.score)


def test_a_frame_without_pandas_says_what_to_install(sft_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="needs pandas; install it with: pip install pan"):
        sft_run.results.frame("log")
    with pytest.raises(RunError, match="no table 'loss'; expected one of scores, differences"):
        sft_run.results.frame("loss")


@pytest.mark.parametrize(
    ("table", "stage"),
    [
        ("verdict", "check"),
        ("scores", "check"),
        ("items", "baselines"),
        ("log", "train"),
        ("movement", "movement"),
    ],
)
def test_what_is_not_there_yet_is_said_with_the_call_that_makes_it(
    tiny_job, tmp_path, table, stage
):
    run = Run(tiny_job, tmp_path / "runs")
    with pytest.raises(RunError, match=rf"yet; `tunemath.advance\(run, '{stage}'\)` makes it"):
        getattr(run.results, table)


def test_results_of_another_contract_are_not_taken_for_these(shared_job, sft_run):
    other = Run(shared_job, sft_run.folder.path.parent, overrides=["space.rank=2"])
    with pytest.raises(RunError, match="holds the results of another contract"):
        _ = other.results.scores


def test_completion_leaves_out_what_pydantic_has_deprecated(tiny_job):
    contract = tm.FineTune.load(tiny_job)
    for each in (tm.FineTune, contract, contract.space):
        assert {"parse_obj", "construct", "copy", "json", "schema"}.isdisjoint(dir(each))
    assert {"load", "parse", "space", "model_dump"} <= {*dir(contract), *dir(tm.FineTune)}


def test_jupyter_shows_the_card(shared_job, sft_run):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    import nbformat

    runs = sft_run.folder.path.parent
    source = f"import tunemath as tm\nrun = tm.Run({str(shared_job)!r}, {str(runs)!r})\nrun"
    cells = [nbformat.v4.new_code_cell(source), nbformat.v4.new_code_cell("run.results")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    done = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    for cell in done.cells:
        (output,) = cell.outputs
        assert output["data"]["text/html"] == sft_run._repr_html_()
    assert done.cells[0].outputs[0]["data"]["text/plain"] == repr(sft_run)
