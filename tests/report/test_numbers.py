"""Every number of the evidence stands under its own name: on the page, terminal and card.

No two values are alike, so none can stand for another.
"""

from __future__ import annotations

import html
import itertools
import re
from typing import Any

import pytest
from rich.console import Console

from tunemath.report import (
    html_report,
    model_card,
    movement_view,
    plan_view,
    scorecard_view,
    summary_view,
)

ARMS, SETS = ("base", "prompted", "tuned"), ("task", "retention")
COUNTED = ("rows", "dropped", "supervised", "tokens", "median_supervised", "longest_row")


@pytest.fixture
def distinct(sft: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return a run whose shares are .101, .102 … in the order of their names; draw no figure."""
    monkeypatch.setattr("tunemath.report.html.figures", lambda evidence: {})
    share = (n / 1000 for n in itertools.count(101))
    whole = itertools.count(2001)
    card, moved, plan = sft["scorecard"], sft["movement"], sft["plan"]
    for arm, name in itertools.product(ARMS, SETS):
        card["arms"][arm][name] |= {key: next(share) for key in ("score", "low", "high")}
        card["arms"][arm][name] |= {"correct": next(whole), "items": next(whole)}
        product = sft["evaluation" if arm == "tuned" else "baselines"]
        product["arms"][arm][name]["unfinished"] = next(whole)
    for name, other in itertools.product(SETS, ("base", "prompted")):
        card["differences"][name][f"tuned - {other}"] = {
            **{key: next(share) for key in ("difference", "low", "high", "p")},
            **{key: next(whole) for key in ("wins", "losses")},
        }
    card["weighted"] = {arm: next(share) for arm in ARMS}
    card["winning_range"] = {"low": next(share), "high": next(share)}
    for name in SETS:
        moved[name] |= {key: next(share) for key in ("kl", "low", "high", "top1_agreement")}
        moved[name] |= {"positions": next(whole), "rows": next(whole)}
        moved[name]["prompt"] = {"kl": next(share), "positions": next(whole)}
        plan["power"][name] |= {"smallest_difference": next(share), "items": next(whole)}
    card["movement"] = {name: {key: next(share) for key in ("kl", "low", "high")} for name in SETS}
    card["retention_margin"] = next(share)
    plan["parameters"] |= {"percent": 100 * next(share), "trainable": next(whole)}
    plan["parameters"]["total"] = next(whole)
    sft["training"]["trainable"] = {"peft": next(whole), "live": next(whole)}
    sft["training"]["steps"] = next(whole)
    sft["baselines"]["few_shot"] = next(whole)
    plan["schedule"] |= {
        key: next(whole) for key in ("steps", "warmup_steps", "rows_per_step", "tokens_total")
    }
    sft["mask"] |= {key: next(whole) for key in COUNTED}
    sft["mask"]["terminator"] |= {key: next(whole) for key in ("supervised", "expected")}
    sft["mask"]["violations"] = {"double_bos": next(whole), "unstable_boundary": next(whole)}
    sft["mask"]["overlap"] = {name: {"exact": next(whole)} for name in SETS}
    return sft


def page(evidence: dict[str, Any]) -> str:
    """Return the page's words, a line a block, with a bar between its parts."""
    body = re.sub(r"<style.*?</style>|<svg.*?</svg>", "", html_report(evidence), flags=re.DOTALL)
    body = re.sub(r"</?(?:tr|p|div|li|h\d|caption|section)\b[^>]*>", "\v", " ".join(body.split()))
    lines = html.unescape(re.sub(r"(?:\s*<[^>]*>\s*)+", " | ", body)).split("\v")
    return "\n".join(line.strip(" |") for line in lines if line.strip(" |"))


def terminal(*views: Any) -> str:
    console = Console(width=200, no_color=True, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(*views)
    return "\n".join(" ".join(line.split()) for line in capture.get().splitlines())


# What is said of the choices, on page and card alike: a name, and the number that is its own.
ROWS = {
    "Trainable, from the shapes": "2,035 of 2,036 parameters",
    "Trainable, PEFT's count of the live model": "2,037 parameters: not what the shapes imply",
    "Rows": "2,045; 2,046 dropped as too long",
    "Trained on": "2,047 of 2,048 tokens",
    "Answer tokens in a row, median": "2,049",
    "Longest row": "2,050 tokens",
    "Violations of the certificate": "4,107",
    "Rows shared with the task items": "2,055",
    "Rows shared with the retention items": "2,056",
    "Optimizer steps": "2,041 planned, 2,039 done",
    "Warm-up": "2,042 steps",
    "Rows in a step": "2,043",
    "Tokens read in training": "2,044",
    "Task items": "2,030",
    "Smallest detectable task difference": "14.5 points",
    "Retention items": "2,034",
    "Smallest detectable retention difference": "15.1 points",
    "Examples in the prompt-only baseline": "2,040",
    "Retention that may be lost": "15.8 points",
    "Same first-choice token, task": "14.3 %",
    "Same first-choice token, retention": "14.9 %",
}
WINNING = "when the task weighs between 13.8 % and 13.9 %."
MOVED = ("0.140 [0.141, 0.142] nats per answer token", "0.146 [0.147, 0.148] nats per answer token")
PAGE = (
    "11.3 % | task, tuned | base 10.1 %; +11.9 points | ",
    "| 11.6 % | retention, tuned | base 10.4 %; +12.7 points | ",
    "| 0.140 nats | moved from the base | KL(tuned ‖ base) per answer token of the task | ",
    "| 15.90 % | of parameters trained | 2,035 parameters",
    "| Base | 10.1 % | [10.2, 10.3] | 2,001 of 2,002, 2,003 unfinished "
    "| 10.4 % | [10.5, 10.6] | 2,004 of 2,005, 2,006 unfinished | 13.5 %",
    "| Base, 2040 examples in the prompt | 10.7 % | [10.8, 10.9] | 2,007 of 2,008, 2,009 "
    "unfinished | 11.0 % | [11.1, 11.2] | 2,010 of 2,011, 2,012 unfinished | 13.6 %",
    "| Tuned | 11.3 % | [11.4, 11.5] | 2,013 of 2,014, 2,015 unfinished "
    "| 11.6 % | [11.7, 11.8] | 2,016 of 2,017, 2,018 unfinished | 13.7 %",
    "| task | tuned − base | +11.9 points | [+12.0, +12.1] | p = 0.122 | 2,019 gained, 2,020 lost",
    "| task | tuned − prompted | +12.3 points | [+12.4, +12.5] | p = 0.126 "
    "| 2,021 gained, 2,022 lost",
    "| retention | tuned − base | +12.7 points | [+12.8, +12.9] | p = 0.130 "
    "| 2,023 gained, 2,024 lost",
    "| retention | tuned − prompted | +13.1 points | [+13.2, +13.3] | p = 0.134 "
    "| 2,025 gained, 2,026 lost",
    WINNING,
    f"KL(tuned ‖ base), task | {MOVED[0]} | KL(tuned ‖ base), retention | {MOVED[1]}",
    f"KL(tuned ‖ base) on task answers | {MOVED[0]} |",
    f"KL(tuned ‖ base) on retention answers | {MOVED[1]} |",
    "trained on | 2,051 of 2,052 |",
)
CARD = (
    "| Base | 10.1 % [10.2, 10.3] | 10.4 % [10.5, 10.6] | 13.5 % |",
    "| Base, 2040 examples in the prompt | 10.7 % [10.8, 10.9] | 11.0 % [11.1, 11.2] | 13.6 % |",
    "| Tuned | 11.3 % [11.4, 11.5] | 11.6 % [11.7, 11.8] | 13.7 % |",
    "| task | tuned − base | +11.9 points [+12.0, +12.1] | p = 0.122 | 2,019 gained, 2,020 lost |",
    "| task | tuned − prompted | +12.3 points [+12.4, +12.5] | p = 0.126 "
    "| 2,021 gained, 2,022 lost |",
    "| retention | tuned − base | +12.7 points [+12.8, +12.9] | p = 0.130 "
    "| 2,023 gained, 2,024 lost |",
    "| retention | tuned − prompted | +13.1 points [+13.2, +13.3] | p = 0.134 "
    "| 2,025 gained, 2,026 lost |",
    WINNING,
    f"- KL(tuned ‖ base) on task answers: {MOVED[0]}",
    f"- KL(tuned ‖ base) on retention answers: {MOVED[1]}",
)
SCORES = (
    "base 10.1 % [10.2, 10.3] 10.4 % [10.5, 10.6] 13.5 %",
    "prompted 10.7 % [10.8, 10.9] 11.0 % [11.1, 11.2] 13.6 %",
    "tuned 11.3 % [11.4, 11.5] 11.6 % [11.7, 11.8] 13.7 %",
    "task tuned − base +11.9 points [+12.0, +12.1] p = 0.122",
    "task tuned − prompted +12.3 points [+12.4, +12.5] p = 0.126",
    "retention tuned − base +12.7 points [+12.8, +12.9] p = 0.130",
    "retention tuned − prompted +13.1 points [+13.2, +13.3] p = 0.134",
    WINNING,
    # The scorecard holds its own copy of the movement.
    "KL(tuned ‖ base), task 0.152 [0.153, 0.154] nats per answer token",
    "KL(tuned ‖ base), retention 0.155 [0.156, 0.157] nats per answer token",
)
MOVEMENT = (
    f"Task {MOVED[0]}\nmeasured at 2,027 positions in 2,028 rows\n"
    "on prompts 0.144 nats per prompt token\nsame first choice 14.3 %\n",
    f"Retention {MOVED[1]}\nmeasured at 2,031 positions in 2,032 rows\n"
    "on prompts 0.150 nats per prompt token\nsame first choice 14.9 %\n",
)
PLAN = (
    "Trainable 2,035 of 2,036 parameters",
    "Steps 2,041 of 2,043 rows",
    "Tokens read 2,044",
    "Detectable, task 14.5 points on 2,030 items",
    "Detectable, retention 15.1 points on 2,034 items",
)


def test_the_page_has_every_number_under_its_name(distinct) -> None:
    text = page(distinct)
    rows = [f"| {name} | {value}" for name, value in ROWS.items()]
    assert [words for words in (*PAGE, *rows) if words not in text] == []


def test_the_card_has_every_number_under_its_name(distinct) -> None:
    text = model_card(distinct).replace("\\", "")
    rows = [f"| {name} | {value}" for name, value in ROWS.items()]
    assert [words for words in (*CARD, *rows) if words not in text] == []


def test_the_terminal_has_every_number_under_its_name(distinct) -> None:
    views = {
        scorecard_view(distinct["scorecard"], distinct["baselines"]): SCORES,
        movement_view(distinct["movement"]): MOVEMENT,
        plan_view(distinct["plan"]): PLAN,
        summary_view(distinct): SCORES,
    }
    for view, expected in views.items():
        text = terminal(view)
        assert [words for words in expected if words not in text] == []
