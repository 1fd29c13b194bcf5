"""What a report's sentences decide: the verdict, the winning weights, the time, the remarks."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from rich.console import Console

from tunemath.report import checklist_view, html_report, mask_view, movement_view, spectrum_view
from tunemath.report.facts import choice_facts, target_shape
from tunemath.report.results import (
    findings,
    headline,
    remarks,
    scores,
    stage_times,
    timing_sentence,
    winning_sentence,
)


def rows_of(evidence: dict[str, Any], choice: str) -> dict[str, str]:
    return {name: text for facts in choice_facts(evidence) if facts.key == choice
            for name, text in facts.implies}  # fmt: skip


def shown(view: Any) -> list[str]:
    console = Console(width=160, no_color=True, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(view)
    return [" ".join(line.split()) for line in capture.get().splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("verdict", "code", "word", "tone", "meaning"),
    [
        ("PASS", 0, "Passed", "pass", "every required check passed"),
        ("FAIL", 1, "Failed", "fail", "a required check failed, or could not run to an answer"),
        ("INSUFFICIENT_EVIDENCE", 3, "Not enough evidence", "unsure",
         "a required check did not have enough evidence"),
        ("ODD", 9, "ODD", "unsure", "no meaning defined"),
    ],
)  # fmt: skip
def test_the_verdict_is_the_checklist_s(sft, verdict, code, word, tone, meaning) -> None:
    sft["checklist"] |= {"verdict": verdict, "exit_code": code}
    found = headline(sft)
    assert (found.word, found.tone, found.exit_code, found.meaning) == (word, tone, code, meaning)
    assert found.sentence == sft["scorecard"]["sentence"]


def test_a_run_without_a_checklist_names_the_stages_it_lacks(sft) -> None:
    absent = headline({**sft, "checklist": None, "movement": None, "scorecard": None})
    assert absent.sentence == (
        "The run has no checklist yet. Stages without a product: movement, check."
    )
    assert (
        "nothing is known about what the run gained"
        in headline({**sft, "scorecard": None}).sentence
    )


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.0, 1.0, "at every weight."),
        (0.001, 1.0, "when the task weighs between 0.1 % and 100 %."),
        (0.0, 0.999, "when the task weighs between 0 % and 99.9 %."),
    ],
)
def test_the_weights_at_which_the_tuned_model_wins(sft, low, high, words) -> None:
    sft["scorecard"]["winning_range"] = {"low": low, "high": high}
    assert winning_sentence(sft).endswith(words)


def test_no_winning_weight_is_not_no_weighted_score(sft) -> None:
    sft["scorecard"]["winning_range"] = None
    assert winning_sentence(sft).startswith("At no weight of the task")
    sft["scorecard"]["weighted"] = None
    assert winning_sentence(sft).startswith("Weighted score: not measured")


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (10.0, "took 10.0 s, 0.0 % more than the 10.0 s planned."),
        (9.0, "took 9.0 s, 10.0 % less than the 10.0 s planned."),
        (12.5, "took 12.5 s, 25.0 % more than the 10.0 s planned."),
    ],
)
def test_time_is_compared_over_the_stages_that_have_both(measured, words) -> None:
    evidence = {
        "plan": {"seconds": {"mask": 4.0, "train": 6.0, "report": 99.0}},
        "manifest": {"stages": {"mask": {"seconds": 3.0}, "check": {"seconds": 50.0}}},
        "training": {"seconds": measured - 3.0},  # where the manifest has none
    }
    assert timing_sentence(evidence).endswith(words)
    times = {time.stage: (time.planned, time.measured) for time in stage_times(evidence)}
    assert times["train"] == (6.0, measured - 3.0)
    assert times["report"] == (99.0, None)
    assert times["check"] == (None, 50.0)


@pytest.mark.parametrize(
    ("planned", "measured"), [({}, {"mask": {"seconds": 1.0}}), ({"mask": 1.0}, {})]
)
def test_a_time_that_one_side_lacks_is_not_compared(planned, measured) -> None:
    found = timing_sentence({"plan": {"seconds": planned}, "manifest": {"stages": measured}})
    assert "cannot be compared" in found


def test_bars_of_time_are_shares_of_the_longest_stage(sft) -> None:
    seconds = {stage: {"seconds": 1.5 * k} for k, stage in enumerate(("plan", "mask", "train"))}
    sft["manifest"]["stages"] = seconds
    sft["plan"]["seconds"] = {"plan": 0.75, "mask": 0.375, "train": 2.25}
    page = html_report(sft).partition('<section id="time"')[2].partition("</section>")[0]
    widths = {
        stage: re.findall(r"width:([\d.]+)%", row)
        for stage, row in re.findall(r'<tr><th scope="row">(\w+)</th>(.*?)</tr>', page)
    }
    assert widths["plan"] == ["25.0", "0.0"]
    assert widths["mask"] == ["12.5", "50.0"]
    assert widths["train"] == ["75.0", "100.0"]


@pytest.mark.parametrize(("steps", "stopped"), [(59, True), (60, False), (61, False)])
def test_a_run_that_took_fewer_steps_is_said_to_have_stopped(sft, steps, stopped) -> None:
    sft["training"]["steps"] = steps
    said = dict(remarks(sft))
    assert ("Stopped early" in said) is stopped
    assert not stopped or said["Stopped early"] == "training stopped after 59 of 60 steps"


def test_what_may_be_lost_is_the_contract_s_until_there_is_a_scorecard(sft) -> None:
    sft["contract"]["evaluation"]["retention_margin"] = 0.25
    assert rows_of(sft, "evaluation")["Retention that may be lost"] == "10.0 points"
    sft["scorecard"]["retention_margin"] = None
    assert rows_of(sft, "evaluation")["Retention that may be lost"] == "25.0 points"


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"alpha": 16, "rank": 8, "rslora": False}, "α/r = 16/8 = 2"),
        ({"alpha": 16, "rank": 4, "rslora": True}, "α/√r = 16/√4 = 8"),
        ({"alpha": None, "rank": 8}, "not measured"),
        ({"alpha": 16, "rank": None}, "not measured"),
    ],
)
def test_the_scale_of_an_update(sft, space, words) -> None:
    sft["contract"]["space"] |= space
    assert rows_of(sft, "space")["Scale s in ΔW = s·BA"] == words


def test_the_first_and_last_five_losses_are_averaged(sft) -> None:
    for step, row in enumerate(sft["training"]["log"]):
        row["loss"] = float(step)
    found = rows_of(sft, "objective")
    assert found["Loss, mean of the first 5 steps"] == "2.000 nats per answer token"
    assert found["Loss, mean of the last 5 steps"] == "57.000 nats per answer token"
    sft["training"]["log"] = sft["training"]["log"][:3]
    assert rows_of(sft, "objective")["Loss, mean of the first 3 steps"].startswith("1.000")


def test_shapes_of_layers_and_of_other_tensors() -> None:
    assert target_shape({"d_in": 3, "d_out": 5, "shape": [5, 3]}) == "3 → 5"
    assert target_shape({"d_in": None, "d_out": None, "shape": [7]}) == "7"
    assert target_shape({}) == "not measured → not measured"


def test_each_choice_on_the_page_has_its_own_findings_and_no_other(sft, monkeypatch) -> None:
    monkeypatch.setattr("tunemath.report.html.figures", lambda evidence: {})
    parts = re.split(r'<section id="([a-z]+)"', html.unescape(html_report(sft)))
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert findings(sft)
    for finding in findings(sft):
        holding = {name for name, text in sections.items() if finding.claim in text}
        assert holding == {finding.choice, "findings"}, finding.check


def test_scores_without_a_scorecard_are_those_of_the_arms(sft) -> None:
    rows = {row.arm: row for row in scores({**sft, "scorecard": None})}
    assert rows["base"].task.score == "4.0 %"
    assert rows["base"].weighted == "not measured"


# --- the terminal's own marks


def test_bars_are_as_long_as_their_share(sft) -> None:
    sft["spectrum"]["summary"]["energy"] = [0.5, 1.0, 0.0, *[0.25] * 17]
    lines = shown(spectrum_view(sft["spectrum"]))
    assert "1 50.0 % " + "━" * 15 in lines
    assert "2 100.0 % " + "━" * 30 in lines
    assert "3 0.0 %" in lines
    assert "16 25.0 % " + "━" * 8 in lines  # half of fifteen, to the even
    assert not any(line.startswith("17 ") for line in lines)


def test_the_line_of_positions_goes_from_nothing_to_the_highest(sft) -> None:
    part = sft["movement"]["task"]
    part["by_position"] = [{"position": i, "kl": kl} for i, kl in enumerate((8, 0, 1, 3.99, 4, 7))]
    lines = shown(movement_view(sft["movement"]))
    assert "by position █▁▂▄▅█ (highest 8.000 nats)" in lines
    part["by_position"] = [{"position": i, "kl": 1.0} for i in range(41)]
    assert "by position " + "█" * 40 + " (highest 1.000 nats)" in shown(
        movement_view(sft["movement"])
    )
    part["by_position"] = [{"position": 0, "kl": 0.0}]
    assert "by position ▁ (highest 0.000 nats)" in shown(movement_view(sft["movement"]))


def token(text: str, supervised: bool) -> dict[str, Any]:
    return {"text": text, "supervised": supervised, "special": False}


def test_brackets_open_and_close_around_what_is_trained_on() -> None:
    tokens = [token("a", True), token("b", True), token("c", False), token("d", True)]
    lines = shown(mask_view({"samples": [{"id": "r", "tokens": tokens}]}))
    assert lines[-2:] == ["r", "⟦ab⟧c⟦d⟧"]


def test_an_advisory_finding_is_marked_and_a_pass_needs_no_explanation(sft) -> None:
    lines = shown(checklist_view(sft["checklist"]))
    found = {f["check"]: f for f in sft["checklist"]["findings"]}
    assert any("budget.time (advisory)" in line for line in lines)
    assert not any("mask.overlap (advisory)" in line for line in lines)
    explained = [line for line in lines if line.startswith("what to do")]
    assert len(explained) == sum(f["status"] != "PASS" for f in found.values())


def test_time_of_killed_processes_is_neither_known_nor_compared():
    seconds = {"mask": 2.0, "train": 100.0}
    evidence = {
        "plan": {"seconds": {**seconds, "total": 102.0}},
        "manifest": {"stages": {"mask": {"seconds": 3.0}, "train": {"seconds": 10.0}}},
        "training": {"resumed_at": []},
    }
    assert timing_sentence(evidence) == (
        "The stages that have both figures took 13.0 s, 87.3 % less than the 1 min 42 s planned."
    )
    evidence["training"]["resumed_at"] = [3, 9]
    assert timing_sentence(evidence) == (
        "The stages that have both figures took 3.0 s, 50.0 % more than the 2.0 s planned. "
        "Training went on from step 9 after it was interrupted: its seconds are those of the last "
        "process alone, and left out here."
    )
