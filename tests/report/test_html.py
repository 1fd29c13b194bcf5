from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from tunemath.report import html_report

VOID = {"meta", "br", "hr", "img", "link", "input"}
LOADING = {"src", "srcset", "href", "action", "data", "poster", "formaction", "xlink:href"}


class Page(HTMLParser):
    """Every element with its attributes, the visible text, and whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def attributes(self, name: str) -> list[str]:
        return [a[name] or "" for _, a in self.elements if name in a]


def squeeze(text: str) -> str:
    return " ".join(text.split())


def test_it_is_one_balanced_document(any_run: dict[str, Any]) -> None:
    page = Page(html_report(any_run))
    assert page.open == []
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))


def test_every_local_link_has_its_target(any_run: dict[str, Any]) -> None:
    text = html_report(any_run)
    page = Page(text)
    ids = set(page.attributes("id"))
    targets = [*page.attributes("href"), *re.findall(r"url\((#[^)]*)\)", text)]
    assert targets
    assert {target for target in targets if target.removeprefix("#") not in ids} == set()


def test_nothing_is_requested(any_run: dict[str, Any]) -> None:
    text = html_report(any_run)
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"} == set()
    for _, attributes in page.elements:
        for name in LOADING & set(attributes):
            assert (attributes[name] or "").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    assert re.findall(r"https?://|@import|url\((?!#)", text) == []
    policy = next(a for tag, a in page.elements if a.get("http-equiv"))["content"] or ""
    for rule in ("default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"):
        assert rule in policy


def test_text_from_data_and_models_stays_text(sft: dict[str, Any]) -> None:
    text = html_report(sft)
    assert "<script>alert(1)</script>" in Page(text).text
    for raw in ("<script", "<img", "<b>bold", "<i>float", "\x1b", "\u202e"):
        assert raw not in text


def poisoned(value: Any) -> Any:
    """Return the same evidence with markup in front of every string."""
    if isinstance(value, str):
        return "\"'><svg onload=alert(1)><script>{{ 7*7 }}" + value
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    return [poisoned(item) for item in value] if isinstance(value, list) else value


def test_no_string_of_the_evidence_can_become_markup(sft: dict[str, Any]) -> None:
    evil = poisoned(copy.deepcopy(sft))
    evil["training"]["dtype"] = "float32"
    text = html_report(evil)
    page = Page(text)
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.elements}
    assert not [a for _, a in page.elements if "onload" in a]
    assert "{{ 7*7 }}" in page.text


def test_every_finding_is_there_in_full(sft: dict[str, Any]) -> None:
    text = squeeze(Page(html_report(sft)).text)
    for finding in sft["checklist"]["findings"]:
        for key in ("check", "claim", "measured", "threshold", "where", "action"):
            assert squeeze(finding[key]) in text
        assert all(failure in text for failure in finding["covers"])
    for word in ("Pass", "Fail", "Error", "Not run", "Insufficient evidence"):
        assert word in text


def test_the_verdict_comes_first_and_numbers_have_units(sft: dict[str, Any]) -> None:
    text = squeeze(Page(html_report(sft)).text)
    places = [
        text.index(words)
        for words in (
            "Passed",
            sft["scorecard"]["sentence"],
            "Exit code 0: every required check passed.",
            "Scores on held-out items",
            "What may change",
            "What is minimised",
            "Which tokens count",
            "What it costs",
            "What would change our mind",
            "Before and after",
            "Every finding",
            "Seconds by stage",
        )
    ]
    assert places == sorted(places)
    for words in (
        "68.7 %",
        "+64.7 points",
        "[+56.2, +72.3]",
        "p < 0.0001",
        "0.831 [0.715, 0.956] nats per answer token",
        "2,442,240 of 136,957,248 parameters (1.78 %)",
        "27.4 TFLOP",
        "between 2.5 % and 100 %",
        "1.8 % more than the 3 min 0 s planned",
        "PeftModel.from_pretrained(model, adapter)",
        "dequantised 4-bit",
    ):
        assert words in text


def test_a_failed_run_names_what_failed(dpo: dict[str, Any]) -> None:
    text = squeeze(Page(html_report(dpo)).text)
    assert "Exit code 1: a required check failed" in text
    assert "Fail: Retention was measured after adaptation" in text
    assert "executed code that came with the model" in text
    assert "0.693147 nats per pair (ln 2 = 0.693147)" in text


def test_what_is_absent_is_said(incomplete: dict[str, Any]) -> None:
    text = squeeze(Page(html_report(incomplete)).text)
    for words in (
        "No verdict yet",
        "Stages without a product: artefact, evaluate, movement, spectrum, check",
        "training stopped after 14 of 60 steps",
        "Paired differences: not measured",
        "The checklist: not measured",
        "Answers of the tuned model: not measured",
        "Retention: not measured: the contract names no retention items",
    ):
        assert words in text


def test_supervised_tokens_are_marked_and_only_those(sft: dict[str, Any]) -> None:
    text = html_report(sft)
    sample = sft["mask"]["samples"][0]
    want = "".join(token["text"] for token in sample["tokens"] if token["supervised"])
    rows = re.findall(r'<p class="tokens">(.*?)</p>', text, re.DOTALL)
    assert len(rows) == len(sft["mask"]["samples"])
    marked = re.findall(r"<mark>(.*?)</mark>", rows[0], re.DOTALL)
    assert [Page(part).text for part in marked] == [want]


def test_headings_and_tables_are_accessible(any_run: dict[str, Any]) -> None:
    page = Page(html_report(any_run))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert all(a.get("scope") in {"col", "row"} for tag, a in page.elements if tag == "th")
    drawings = [a for tag, a in page.elements if tag == "svg"]
    assert all(a["role"] == "img" and a["aria-labelledby"] for a in drawings)


def test_the_same_evidence_gives_the_same_bytes(sft: dict[str, Any]) -> None:
    assert html_report(sft) == html_report(copy.deepcopy(sft))


def contrast(one: str, other: str) -> float:
    """Return the WCAG 2 contrast ratio of two hexadecimal colours."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(scheme: str) -> None:
    blocks = re.findall(r":root \{(.*?)\}", html_report({}), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0]))
    if scheme == "dark":
        colours |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[1]))
    pairs = [
        (name, "paper") for name in ("ink", "muted", "accent", "second", "good", "bad", "warn")
    ]
    pairs += [(name, f"{name}-soft") for name in ("good", "bad", "warn")]
    pairs += [("ink", "raised"), ("muted", "raised"), ("ink", "accent-soft")]
    pairs += [("muted", "accent-soft"), ("good", "raised"), ("warn", "raised"), ("bad", "raised")]
    low = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in pairs}
    assert {pair: ratio for pair, ratio in low.items() if ratio < 4.5} == {}


def test_half_a_surrogate_pair_does_not_break_the_file(sft: dict[str, Any]) -> None:
    sft["evaluation"]["before_after"][0]["tuned"] = "\ud83c"
    sft["checklist"]["findings"][0]["where"] = "\ud83c"
    assert "\N{REPLACEMENT CHARACTER}" in html_report(sft).encode().decode()


def test_it_renders_without_matplotlib(
    sft: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    text = squeeze(Page(html_report(sft)).text)
    assert "Not drawn, for want of data or of matplotlib: energy, layers." in text
