"""Tables and sentences of an update's spectra, on a product made by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest
from rich.console import Console

from tunemath.report import spectra_page, spectra_view


def group(**changes: Any) -> dict[str, Any]:
    return {
        "modules": 2, "share": 0.25, "overall_relative_norm": 0.0321,
        "median_effective_rank_bounds": [3.04, 3.04], "stable_rank": 1.25,
        "rank_for_90_percent": 2.5, "rank_for_99_percent": None,
        "base_overlap": None, "other_overlap": None, **changes,
    }  # fmt: skip


def weight(name: str, moved: float | None, norm: float, **changes: Any) -> dict[str, Any]:
    return {
        "name": name, "target": "q", "layer": 0, "relative_norm": moved, "frobenius": norm,
        "singular_values": [norm, 0.5], "effective_rank_bounds": [1.26, 1.34],
        "effective_rank": 1.3, "energy": [0.8, 1.0], "rank_for_90_percent": 2, "exact": True,
        **changes,
    }  # fmt: skip


def made(**changes: Any) -> dict[str, Any]:
    overlap = {"left": 0.11, "left_chance": 0.12, "right": 0.13, "right_chance": 0.14}
    summary = {
        "modules": 3, "overall_relative_norm": 0.0456, "largest_slack": 1.5e-3, "intruders": None,
        "base_overlap": overlap, "other_overlap": None,
        "by_block": [group(block="attention", base_overlap=overlap), group(block="feed-forward")],
        "by_target": [group(target="q", block="attention"), group(target="o", block="attention"),
                      group(target="o", block="feed-forward")],
        "by_layer": [group(layer=0)],
    }  # fmt: skip
    return {
        "tuned": "runs/a/adapter", "base": "models/base", "skipped": None,
        "summary": summary | changes.pop("summary", {}),
        "modules": changes.pop("modules", None) or [
            weight("small", 0.01, 3.0), weight("large", 0.03, 2.0), weight("middle", 0.02, 1.0),
        ],
        "settings": {"top": 7, "epsilon": 0.5},
        "inventory": {"vectors": [], "resized": [], "only_base": [], "only_tuned": [],
                      "not_compared": []} | changes.pop("inventory", {}),
        **changes,
    }  # fmt: skip


def shown(product: dict[str, Any], most: int = 9) -> list[str]:
    console = Console(width=200, no_color=True, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(spectra_view(product, most))
    return [" ".join(line.split()) for line in capture.get().splitlines() if line.strip()]


def test_every_number_stands_under_its_head():
    lines = shown(made())
    assert lines[0] == "…/a/adapter beside models/base: 3 weights, ‖ΔW‖ / ‖W‖ 4.56 %"
    heads = "Weights Share ‖ΔW‖/‖W‖ Eff. rank Stable 90 % 99 %"
    for title, name in (("block", "Block"), ("kind of weight", "Target"), ("layer", "Layer")):
        assert lines[lines.index(f"By {title}") + 1] == f"{name} {heads}"
    assert "attention 2 25.0 % 3.21 % 3.0 1.2 2.5 > known" in lines
    assert "attention 11.0 % 12.0 % 13.0 % 14.0 %" in lines  # shared with the base's first


def test_two_kinds_of_one_name_are_told_apart():
    lines = shown(made())
    assert [line.split(" 2 25.0")[0] for line in lines if " 2 25.0 %" in line][2:5] == [
        "q", "o (attention)", "o (feed-forward)",
    ]  # fmt: skip


def test_what_moved_most_comes_first_and_no_more_than_asked_for():
    lines = shown(made(), 2)
    at = lines.index("The 2 that moved most")
    assert lines[at + 1] == "Weight ‖ΔW‖/‖W‖ ‖ΔW‖ σ₁ Eff. rank 90 %"
    assert lines[at + 3 : at + 5] == [
        "large 3.00 % 2 2 1.3 2", "middle 2.00 % 1 1 1.3 2",
    ]  # fmt: skip
    assert not any(line.startswith("small ") for line in lines)


def test_without_a_base_norms_decide_and_no_share_is_shown():
    rows = [weight("small", None, 1.0), weight("large", None, 3.0)]
    lines = shown(made(base=None, modules=rows, summary={"overall_relative_norm": None}))
    assert lines[0] == "…/a/adapter beside a base that is not given: 3 weights"
    at = lines.index("The 2 that moved most")
    assert lines[at + 1] == "Weight ‖ΔW‖ σ₁ Eff. rank 90 %"
    assert lines[at + 3].startswith("large 3 3")
    assert "attention 2 25.0 % 3.0 1.2 2.5 > known" in lines


@pytest.mark.parametrize(
    ("bounds", "words"), [([1.24, 1.16], "1.2"), ([1.26, 1.36], "1.3–1.4"), ([2.0, 2.0], "2.0")]
)
def test_bounds_that_round_alike_are_one_number(bounds, words):
    lines = shown(made(modules=[weight("w", 0.01, 1.0, effective_rank_bounds=bounds)]))
    assert f"w 1.00 % 1 1 {words} 2" in lines


def test_what_is_not_decomposed_in_full_is_said():
    some = [weight("a", 0.1, 1.0), weight("b", 0.1, 1.0, exact=False), weight("c", 0.1, 1.0)]
    assert (
        "2 of 3 weights are decomposed in full; of the others 7 singular values are known, and "
        "the relative error at each rank to 0.0015 at most."
    ) in shown(made(modules=some))
    assert not any("decomposed" in line for line in shown(made()))


@pytest.mark.parametrize(("found", "many"), [((3, 3), "3 of"), ((3, 4), "3 to 4 of")])
def test_intruders_are_counted(found, many):
    intruders = dict(zip(("lower", "upper"), found, strict=True)) | {"of": 30}
    assert (
        f"Intruder dimensions: {many} the tuned weights' 30 first directions have a cosine under "
        "0.5 with every direction of the base."
    ) in shown(made(summary={"intruders": intruders}))


def test_what_else_differs_is_named():
    vectors = [{"name": "a.bias", "relative_norm": 0.01}, {"name": "b.bias", "relative_norm": 0.02},
               {"name": "c.bias", "relative_norm": None}]  # fmt: skip
    inventory = {
        "vectors": vectors,
        "resized": [{"name": "embed", "base": [32, 8], "tuned": [33, 8]}],
        "only_base": ["a", "b", "c"],
        "only_tuned": ["a", "b", "c", "d", "e"],
        "not_compared": ["p"],
    }
    lines = shown(made(inventory=inventory))
    assert lines[-5:] == [
        "Norms and biases that differ: 3, the most b.bias, by 2.00 % of its norm.",
        "embed is 32×8 and 33×8; the rows that both have are compared.",
        "Only the base has a, b, c.",
        "Only the tuned has a, b, c and 2 more.",
        "Packed, so their values are not compared: p.",
    ]


def test_the_page_says_the_same():
    text = " ".join(re.sub(r"<[^>]*>", " ", spectra_page(made(), 2)).split())
    for words in ("3 weights, ‖ΔW‖ / ‖W‖ 4.56 %", "The 2 that moved most", "large 3.00 % 2 2 1.3 2",
                  "o (feed-forward) 2 25.0 %"):  # fmt: skip
        assert words in text
