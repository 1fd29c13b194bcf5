from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console, RenderableType

from tunemath.report import (
    arms_view,
    artefact_view,
    checklist_view,
    mask_view,
    movement_view,
    plan_view,
    scorecard_view,
    spectrum_view,
    summary_view,
    training_view,
)


def show(view: RenderableType, width: int = 80) -> str:
    console = Console(width=width, no_color=True, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(view)
    text = capture.get()
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "\x1b" not in text
    return " ".join(text.split())


def test_plan(sft: dict[str, Any]) -> None:
    text = show(plan_view(sft["plan"]))
    for words in (
        "2,442,240 of 136,957,248 parameters (1.78 %)",
        "60 of 16 rows",
        "27.4 TFLOP",
        "6 min 33 s",
        "11.4 points on 150 items",
        "1,536 → 576",
        "513.1 MiB",
        "It fits in 24.00 GiB",
        "examples at once 340",
        "dequantised",
    ):
        assert words in text


def test_mask_without_colour_shows_what_is_trained_on(sft: dict[str, Any]) -> None:
    text = show(mask_view(sft["mask"]))
    assert "5,280 of 25,340 tokens (20.84 %)" in text
    assert "⟦1987-03-03<|im_end|>⟧" in text
    assert "<script>alert(1)</script>" in text


def test_mask_names_the_first_violations(sft: dict[str, Any]) -> None:
    sft["mask"]["violations"]["double_bos"] = 3
    sft["mask"]["first_violations"] = [
        {"kind": "double_bos", "where": "train.jsonl:12", "detail": "[red]two[/red] BOS"}
    ]
    text = show(mask_view(sft["mask"]))
    assert "train.jsonl:12: double_bos: [red]two[/red] BOS" in text


def test_checklist_shows_all_and_explains_what_did_not_pass(dpo: dict[str, Any]) -> None:
    text = show(checklist_view(dpo["checklist"]))
    for finding in dpo["checklist"]["findings"]:
        assert finding["check"].split(".")[0] in text
    assert "✗ Fail: Retention was measured after adaptation" in text
    assert "lower budget.learning_rate or budget.epochs" in text
    assert "not below −10.0 points" in text


def test_scorecard(sft: dict[str, Any]) -> None:
    text = show(scorecard_view(sft["scorecard"], sft["baselines"]))
    for words in (
        "68.7 % [61.2, 76.1]",
        "+64.7 points [+56.2, +72.3]",
        "p < 0.0001",
        "between 2.5 % and 100 %",
        "0.831 [0.715, 0.956] nats per answer token",
    ):
        assert words in text


def test_stages_run_alone(dpo: dict[str, Any], incomplete: dict[str, Any]) -> None:
    assert "base task exact match 6 150 4.0 %" in show(arms_view(incomplete))
    assert "60 steps in 3 min 21 s" in show(training_view(dpo["training"]))
    assert "margin accuracy" in show(training_view(dpo["training"]))
    assert "14 steps" in show(training_view(incomplete["training"]))
    assert "On cpu (float32)" in show(training_view(dpo["training"]))


def test_the_proof_of_the_artefact(sft: dict[str, Any]) -> None:
    shown = show(artefact_view(sft["artefact"]))
    assert "merged, saved and loaded again 4.7e−5 1.1e−10 nats" in shown
    assert "85 positions; a logit may differ by 0.001" in shown
    unmerged = {**sft["artefact"], "not_merged": "[bold]an adapter"}
    assert "Not merged: [bold]an adapter" in show(artefact_view(unmerged))


def test_the_plan_names_the_stage_that_holds_most(sft: dict[str, Any]) -> None:
    memory = {**sft["plan"]["memory"], "highest": "baselines"}
    memory |= {"stages": {"baselines": 2**31, "train": 2**30}, "total_bytes": 2**31}
    text = show(plan_view({**sft["plan"], "memory": memory}))
    assert "2.00 GiB, in baselines; fits in" in text
    assert "The most in each stage: baselines 2.00 GiB, train 1.00 GiB" in text
    assert "lower evaluation.batch_size" in text


def test_movement_and_spectrum(sft: dict[str, Any]) -> None:
    moved = show(movement_view(sft["movement"]))
    assert "0.112 [0.096, 0.129] nats per answer token" in moved
    assert "1,650 positions in 150 rows" in moved
    assert "█" in moved
    found = show(spectrum_view(sft["spectrum"]))
    assert "down_proj" in found
    assert f"{sft['spectrum']['summary']['median_effective_rank']:.2f}" in found


def test_movement_without_retention(sft: dict[str, Any]) -> None:
    assert "Retention not measured" in show(movement_view({**sft["movement"], "retention": None}))


def test_summary(sft: dict[str, Any]) -> None:
    text = show(summary_view(sft, "runs/dates-sft", "/models/base", "runs/dates-sft/report.html"))
    for words in (
        "PASSED",
        sft["scorecard"]["sentence"].split(",")[0],
        "Exit code 0: every required check passed.",
        "3 min 29 s 3 min 24 s",
        "10. 31 грудня 2023 р.",
        "runs/dates-sft/report.html",
        'base = "/models/base"',
        f'adapter = "{Path("runs/dates-sft/adapter").resolve()}"',
    ):
        assert words in text


def test_summary_of_anything(any_run: dict[str, Any]) -> None:
    text = show(summary_view(any_run))
    assert "not measured" in text or "PASSED" in text or "FAILED" in text


def test_views_of_nothing() -> None:
    for view in (plan_view, mask_view, checklist_view, scorecard_view, movement_view):
        assert "not measured" in show(view({}))
    assert "not measured" in show(spectrum_view({}))
