"""What the curves of an update's rank say, on curves made by hand."""

from __future__ import annotations

import copy
import io
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from rich.console import Console

from tunemath.report import rank_advice, rank_figures, rank_page, rank_view, standalone_svg

HOSTILE = "<script>alert(1)</script>"
RANKS = (0, 1, 2, 4, 8)
KEPT = (0.0, 0.62, 0.93, 0.99, 1.0)
RIGHT = (4, 60, 91, 96, 97)


def row(place: int, scored: bool, status: str) -> dict[str, Any]:
    kept, right = KEPT[place], RIGHT[place]
    lost = {"estimate": 1 - kept, "low": (1 - kept) * 0.9, "high": (1 - kept) * 1.1}
    kl = {"kl": 2.0 * (1 - kept), "low": 1.9 * (1 - kept), "high": 2.1 * (1 - kept)}
    moved = {"kl": 2.0 * kept, "low": 1.9 * kept, "high": 2.1 * kept}
    less = (right - 97) / 100
    score = {
        "correct": right, "items": 100, "score": right / 100, "low": right / 100 - 0.04,
        "high": min(1.0, right / 100 + 0.04),
        "less_whole": {
            "difference": less, "low": less - 0.02, "high": less + 0.02, "p": 0.5,
            "wins": 0, "losses": 97 - right,
        },
    }  # fmt: skip
    return {
        "rank": RANKS[place],
        "energy": (0.0, 0.5, 0.7, 0.9, 1.0)[place],
        "sets": {"task": {"kl_tuned_cut": kl, "kl_cut_base": moved, "lost": lost}},
        "score": score if scored else None,
        "status": status,
    }


def curve(block: str | None, needed: int, undecided: tuple[int, ...] = ()) -> dict[str, Any]:
    rows = []
    for place, rank in enumerate(RANKS):
        status = "PASS" if rank >= needed else "FAIL"
        status = "INSUFFICIENT_EVIDENCE" if rank in undecided else status
        rows.append(row(place, block is None or rank == needed, status))
    return {"block": block, "points": rows, "needed": needed, "undecided": list(undecided)}


def made(needed: int = 4, **changes: Any) -> dict[str, Any]:
    blocks = {
        "attention": {"energy": 0.25, "matrices": 120, "targets": ["q_proj", "v_proj"]},
        "feed-forward": {"energy": 0.75, "matrices": 90, "targets": ["down_proj"]},
    }
    return {
        "base": "smollm2-135m",
        "source": "the items of dates.yaml",
        "adapter": True,
        "update": {
            "path": "runs/dates-sft/adapter", "source": "LoRA's factors", "rank": 8, "uncut": [],
            "matrices": 210, "blocks": blocks,
        },
        "sets": {"task": {"items": 100, "positions": 900}},
        "share": 0.05,
        "margin": 0.05,
        "moved": {"task": {"kl": 2.0, "low": 1.9, "high": 2.1}},
        "curves": [curve(None, needed), curve("attention", 1), curve("feed-forward", 4)],
        "together": {"ranks": {"attention": 1, "feed-forward": 4}, **row(3, True, "PASS")},
        "as_evaluated": {"same": 100, "of": 100},
        **changes,
    }  # fmt: skip


def finished(rank: dict[str, Any]) -> dict[str, Any]:
    return {**rank, "advice": rank_advice(rank)}


def test_the_needed_rank_comes_with_the_paired_comparison():
    verdict, following, *_ = rank_advice(made())
    assert verdict == (
        "Rank 4 of 8 would have been enough: 96 of 100 right against 97 for the whole update "
        "(0 gained and 1 lost, −1.0 points [−3.0, +1.0], p = 0.500); KL(tuned ‖ cut) 0.02 nats a "
        "token, 1.0 % [0.9, 1.1] of KL(tuned ‖ base); 90 % of the energy held."
    )
    assert "train with rank 4" in following
    assert "resize runs/dates-sft/adapter OUT --rank 4" in following


def test_each_block_is_said_alone_and_then_together():
    said = rank_advice(made())
    assert said[2].startswith("Rank 1 of the attention would have been enough, all else whole: 60")
    assert said[3].startswith("Rank 4 of the feed-forward would have been enough, all else whole")
    assert said[4].startswith("These ranks together (attention 1, feed-forward 4) are enough: 96")
    assert said[4].endswith('`rank_pattern={"q_proj": 1, "v_proj": 1, "down_proj": 4}`.')


def test_a_used_up_rank_is_told_from_one_that_the_items_cannot_tell():
    small = made(8)
    assert rank_advice(small)[0].startswith("The whole rank, 8, is needed. Rank 4 is too little:")
    assert "next time try 16 too" in rank_advice(small)[1]
    few = made(8, curves=[curve(None, 8, (2, 4))], together=None)
    said = rank_advice(few)
    assert said[0].startswith("No rank below the whole, 8, is shown to be enough by these items.")
    assert "ranks 2, 4 suffice can't be told on these 100 items" in said[1]
    assert said[2].startswith("Ask more items")


def test_a_dense_update_is_told_the_lora_that_could_stand_for_it():
    dense = made(3, adapter=False)
    dense["curves"][0] = curve(None, 4)
    dense["update"]["uncut"] = ["model.norm.weight"]
    said = rank_advice(dense)
    assert said[1].startswith("A LoRA of rank 4 could stand for this update. Next time train one:")
    assert said[-1].startswith("1 changed tensors that are no matrices, such as model.norm.weight")


def test_a_block_that_need_not_move_is_named():
    still = made()
    still["curves"][1] = curve("attention", 0)
    assert rank_advice(still)[2].startswith("The attention need not have been trained, all else")


def test_an_update_that_moves_nothing_has_no_rank():
    still = made()
    still["curves"] = [{**each, "needed": None} for each in still["curves"]]
    (said,) = rank_advice(still)
    assert "Was it trained, and is this its base?" in said
    assert rank_figures(still) == []


def test_the_terminal_has_every_row_once():
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(rank_view(finished(made())))
    text = console.export_text()
    assert text.count("8 (whole)") == 3
    assert "96.0 %" in text
    assert "The whole update, written into the weights, gives 100 of 100 answers" in text


def test_the_page_is_well_formed_and_hostile_text_stays_text():
    rank = made(source=HOSTILE)
    rank["update"]["path"] = HOSTILE
    page = rank_page(finished(rank))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r'(src|href)="http', page)


@pytest.mark.parametrize("name", ["rank", "rank-blocks"])
def test_the_figures_stand_in_files_of_their_own(name):
    found = {figure.name: figure for figure in rank_figures(made())}
    root = ElementTree.fromstring(standalone_svg(found[name].svg))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in ElementTree.tostring(root, "unicode")


def test_the_figure_says_in_words_what_it_shows():
    whole, blocks = rank_figures(made())
    assert "rank 4 is the smallest that suffices" in whole.alt
    assert "attention needs rank 1, feed-forward needs rank 4" in blocks.alt


def test_curves_without_scores_are_drawn_and_told():
    silent = copy.deepcopy(made())
    for each in (*silent["curves"][0]["points"], *silent["curves"][1]["points"],
                 *silent["curves"][2]["points"], silent["together"]):  # fmt: skip
        each["score"] = None
    assert "right against" not in " ".join(rank_advice(silent))
    assert len(rank_figures(silent)) == 2
