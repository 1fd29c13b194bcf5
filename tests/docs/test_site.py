"""The site builds without a warning, asks for nothing elsewhere, and its links lead somewhere."""

from __future__ import annotations

import doctest
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from processes import finished, output_of
from tunemath.course.book import exercises

pytest.importorskip("sphinx", reason="the site needs the extra docs")

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "docs" / "quickstart.md",
    *sorted((ROOT / "docs" / "guides").glob("*.md")),
    *sorted((ROOT / "docs" / "theory").glob("*.md")),
]
# What a page loads by itself, and by which attribute; an <a> is followed by people only.
LOADS = {"script": "src", "link": "href", "img": "src", "source": "src", "iframe": "src"}


class Page(HTMLParser):
    """A page's anchors, the links that people follow, and what it loads by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {found[key] or "" for key in ("id", "name") if key in found}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"] or "")
        if (where := found.get(LOADS.get(tag, ""))) is not None:
            self.loaded.append(where)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E"]
    command += ["-d", str(folder / "doctrees"), str(ROOT / "docs"), str(folder / "html")]
    output_of(command, seconds=500)  # all pages: half a minute of one core
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def inside(page: Path, link: str) -> tuple[Path, str] | None:
    """Return the file and fragment that a link of a page leads to, None if out of the site."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    return path, unquote(parts.fragment)


@pytest.mark.slow
def test_every_link_within_the_site_leads_somewhere(pages):
    dead = []
    for page, content in pages.items():
        for link in {*content.links, *content.loaded}:
            target = inside(page, link)
            if target is None or link.startswith("data:"):
                continue
            path, fragment = target
            known = pages.get(path)
            if not path.is_file() or (known and fragment and fragment not in known.anchors):
                dead.append(f"{page.name}: {link}")
    assert not dead
    assert sum(len(content.links) for content in pages.values()) > 1000


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site, pages):
    outside = [
        f"{page.name}: {link}"
        for page, content in pages.items()
        for link in content.loaded
        if inside(page, link) is None and not link.startswith("data:")
    ]
    assert not outside
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import\s)\s*['\"]?(https?:)?//", text), sheet


@pytest.mark.slow
def test_formulas_are_drawn_and_no_source_of_one_is_left(pages):
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    assert sum("<math" in text for text in texts.values()) > 30
    for page, text in texts.items():
        prose = re.sub(r"(?s)<(pre|code|script|style|math|annotation).*?</\1>", "", text)
        assert not re.search(r"\\(frac|log|mathrm|sum|Vert)|\$\$", prose), page


@pytest.mark.slow
def test_the_course_is_there_with_figures_hints_and_notebooks(site):
    for each in exercises():
        stem = f"{each.number:02d}-{each.name}"
        text = (site / "course" / f"{stem}.html").read_text(encoding="utf-8")
        assert text.count("<summary>") == 4  # three hints and the solution, folded
        assert (site / "_images" / f"{stem}.svg").stat().st_size > 10_000
        assert len(list(site.rglob(f"{stem}.ipynb"))) == 1


@pytest.mark.slow
def test_search_finds_words_of_the_course(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert index.startswith("Search.setIndex(")
    for word in ("mcnemar", "houlsbi", "retent"):
        assert word in index


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_examples_of_a_page_are_right(path, request, monkeypatch):
    if path.stem == "notebook":  # its contract is a tiny one, whose run is there
        job, _ = request.getfixturevalue("shared_job"), request.getfixturevalue("sft_run")
        shutil.copy(job, job.with_name("finetune.yaml"))
        monkeypatch.chdir(job.parent)
    ran = doctest.testfile(str(path), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert ran.failed == 0
    blocks = re.findall(r"^```python\n>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert bool(blocks) == bool(ran.attempted)


@pytest.mark.parametrize("each", exercises(), ids=lambda each: each.name)
def test_examples_of_an_exercise_are_right(each):
    text = "\n".join(re.findall(r"(?s)^```python\n(>>> .*?)^```", each.practice, re.MULTILINE))
    example = doctest.DocTestParser().get_doctest(text, {}, each.name, None, 0)
    assert doctest.DocTestRunner().run(example).failed == 0


def consoles() -> Any:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import consoles  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return consoles


def test_what_a_page_leaves_out_may_be_anything_and_the_rest_may_not():
    matches = consoles().matches
    assert matches("a\n…\nd\n", "a\nb\nc\nd\n")
    assert matches("a\n…\n", "a\n")
    assert matches("in … s\n", "in 3.2 s\n")
    assert not matches("a\n…\nd\n", "a\nb\nc\n")
    assert not matches("in … s\n", "in 3\n2 s\n")
    assert not matches("a\n", "a\nb\n")


def test_of_a_finished_run_only_the_words_are_compared():
    matches = consoles().matches
    written = "Pass gain  +3.3 points (-0.6 to\n           +7.3), p < 0.0001\n…\nend\n"
    printed = "Pass gain  +12.25 points (-1.0 to +7), p < 1e-05\nmore\nend\n"
    assert matches(written, printed, figures=False)
    assert not matches(written, printed)
    assert not matches(written, printed.replace("Pass", "Fail"), figures=False)
    assert not matches("a 1\n", "a 1\nb\n", figures=False)


def test_commands_and_their_output_are_found_in_a_page():
    page = (
        "```console\n$ one\nA\n$ two\nB\nC\n```\n<!-- not run: why -->\n```console\n$ three\n```\n"
    )
    assert list(consoles().commands(page)) == [("one", "A\n"), ("two", "B\nC\n")]


@pytest.mark.slow
def test_commands_print_what_the_pages_say():
    command = [sys.executable, str(ROOT / "scripts" / "consoles.py"), "--check"]
    exercises_pages = sorted((ROOT / "src" / "tunemath" / "course").glob("*/page.md"))
    pages = [str(page) for page in [ROOT / "docs" / "index.md", *PAGES, *exercises_pages]]
    done = finished([*command, *pages], seconds=3000)
    assert done.returncode == 0, done.stdout
