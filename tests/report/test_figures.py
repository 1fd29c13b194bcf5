from __future__ import annotations

import copy
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from tunemath.report.figures import figures, layer_figure, loss_figure, position_figure

NAMES = {"loss", "energy", "layers", "position", "differences", "scores"}


def test_a_whole_run_has_all_figures(sft: dict[str, Any], dpo: dict[str, Any]) -> None:
    assert set(figures(sft)) == NAMES
    assert set(figures(dpo)) == NAMES


def test_figures_are_xml_with_title_and_description(sft: dict[str, Any]) -> None:
    for figure in figures(sft).values():
        root = ElementTree.fromstring(figure.svg)
        assert [child.tag for child in root][:2] == ["title", "desc"]
        assert root.findtext("title") == figure.title
        assert root.findtext("desc") == figure.alt
        assert figure.caption.endswith(".")


def test_colours_and_fonts_come_from_the_page(dpo: dict[str, Any]) -> None:
    for figure in figures(dpo).values():
        assert "var(--" in figure.svg
        assert re.findall(r"#[0-9a-f]{6}\b", figure.svg.replace('href="#', "")) == []
        assert "DejaVu" not in figure.svg
        assert "<text" in figure.svg


def test_figures_are_deterministic(sft: dict[str, Any]) -> None:
    again = figures(copy.deepcopy(sft))
    assert all(figure.svg == again[name].svg for name, figure in figures(sft).items())


def test_the_words_have_the_numbers(sft: dict[str, Any]) -> None:
    drawn = figures(sft)
    assert "task, tuned − base: +64.7 points [+56.2, +72.3]" in drawn["differences"].alt
    assert "task, tuned: 68.7 % [61.2, 76.1]" in drawn["scores"].alt
    assert "retention margin" in drawn["differences"].caption
    norms = [module["relative_norm"] for module in sft["spectrum"]["modules"]]
    assert f"{100 * max(norms):.2f} %" in drawn["layers"].alt
    assert "in 60 steps" in drawn["loss"].alt


def test_dpo_shows_margin_and_accuracy(sft: dict[str, Any], dpo: dict[str, Any]) -> None:
    text = figures(dpo)["loss"].svg
    assert "Margin, nats" in text
    assert "Pairs ranked rightly" in text
    assert "Margin" not in figures(sft)["loss"].svg


def test_the_heat_map_has_a_square_a_module(sft: dict[str, Any]) -> None:
    figure = layer_figure(sft["spectrum"], "effective_rank")
    assert figure is not None
    assert figure.name == "layers-effective-rank"
    assert len(re.findall(r"opacity: 0\.\d+", figure.svg)) == 210 - 1


def test_what_is_not_finite_is_left_out(incomplete: dict[str, Any]) -> None:
    figure = loss_figure(incomplete["training"])
    assert figure is not None
    assert "in 13 steps" in figure.alt
    assert "nan" not in figure.svg.lower()
    every = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": None}]
    assert loss_figure({"objective": "sft", "log": every}) is None


def test_retention_may_be_absent(sft: dict[str, Any]) -> None:
    figure = position_figure({**sft["movement"], "retention": None})
    assert figure is not None
    assert "retention" not in figure.alt


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_one_step_is_drawn(sft: dict[str, Any], steps: int) -> None:
    sft["training"]["log"] = sft["training"]["log"][:steps]
    assert loss_figure(sft["training"]) is not None


def test_no_evidence_no_figures() -> None:
    assert figures({}) == {}
