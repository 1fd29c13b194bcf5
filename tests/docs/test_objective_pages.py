"""The objectives' pages: complete, typeset so that GitHub shows it, and their examples run."""

from __future__ import annotations

import doctest
import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tunemath import objective
from tunemath.objective import fused, preference

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "objective"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "benchmarks.md")
PUBLIC = sorted({*objective.__all__, *preference.__all__, *fused.__all__} - {"Objective"})

each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import figures  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(ROOT / "docs"))
    return figures


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """Return a page without its code."""
    bare = re.sub(r"^```.*?^```$", "", text(path), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]+`", "CODE", bare)


def headings(path: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", text(path), flags=re.MULTILINE)


def sections() -> dict[str, str]:
    """Return the section of every function."""
    found: dict[str, str] = {}
    for path in PAGES:
        parts = re.split(r"^(#+) (.+)$", text(path), flags=re.MULTILINE)
        for name, body in zip(parts[2::3], parts[3::3], strict=True):
            if name in PUBLIC:
                assert name not in found, f"{name} has two sections"
                found[name] = body
    return found


def test_every_public_name_has_a_section_with_its_formula():
    found = sections()
    assert sorted(found) == PUBLIC
    without = [name for name, body in found.items() if "\n$$\n" not in body]
    # The table of names, and the functions whose formulas stand in a table.
    assert sorted(without) == ["PAIR_LOSSES", "divergence_score", "pair_loss"]


@pytest.mark.parametrize("module", [objective, preference, fused], ids=lambda m: m.__name__)
def test_every_paper_of_a_docstring_is_linked_on_the_pages(module: ModuleType):
    linked = set(re.findall(r"https://arxiv\.org/abs/(\d{4}\.\d{5})", "".join(map(text, PAGES))))
    folder = Path(inspect.getfile(module)).parent
    for path in folder.glob("*.py"):
        named = set(re.findall(r"(?:arXiv|and)\s+(\d{4}\.\d{5})", text(path)))
        assert named <= linked, path.name
    assert len(linked) > 30


def test_a_function_s_own_papers_are_in_its_section():
    for name, body in sections().items():
        thing = getattr(objective, name, None) or getattr(preference, name, None)
        if callable(thing):
            papers = set(re.findall(r"arXiv\s+(\d{4}\.\d{5})", thing.__doc__ or ""))
            page = next(path for path in PAGES if name in headings(path))
            assert all(paper in body or paper in intro(page) for paper in papers), name


def intro(path: Path) -> str:
    """Return what a page says outside the functions' sections."""
    whole = text(path)
    for name in set(headings(path)) & set(PUBLIC):
        whole = re.sub(rf"^#+ {name}$.*?(?=^#|\Z)", "", whole, flags=re.DOTALL | re.MULTILINE)
    return whole


@each_page
def test_the_examples_give_what_they_say(path: Path):
    blocks = re.findall(r"^```python\n(.*?)^```$", text(path), flags=re.DOTALL | re.MULTILINE)
    example = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, path.name, str(path), 0)
    ran = doctest.DocTestRunner().run(example)
    assert ran.failed == 0
    assert ran.attempted > 0 or path.stem == "accuracy"


@each_page
def test_links_and_figures_lead_somewhere(path: Path):
    for target in re.findall(
        r"\]\(([^)]+)\)", re.sub(r"^```.*?^```$", "", text(path), flags=re.DOTALL | re.MULTILINE)
    ):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.is_file(), target
        if anchor:
            assert anchor in {head.lower() for head in headings(file)}, target


# What KaTeX and MathJax both know.
COMMANDS = set(
    re.findall(
        r"\w+",
        """
        alpha beta gamma delta varepsilon zeta eta ell lambda pi rho sigma tau chi infty nabla
        partial Delta frac sum sqrt log exp max min tanh arg cdot times ldots to in le ge ne lt gt
        hat quad qquad thinspace mid vert Vert lbrace rbrace mathrm mathbb bigl bigr Bigl Bigr
        """,
    )
)


@each_page
def test_the_maths_is_typeset_by_github_and_katex(path: Path):
    body = prose(path)
    displayed = re.findall(r"^\$\$\n(.*?)\n\$\$$", body, flags=re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^\$\$\n.*?\n\$\$$", "", body, flags=re.DOTALL | re.MULTILINE)
    assert "$$" not in rest
    assert rest.count("$") % 2 == 0
    inline = re.findall(r"\$([^$\n]+)\$", rest)
    assert 2 * len(inline) == rest.count("$"), "a formula is broken over two lines"
    for formula in inline:
        assert formula == formula.strip(), formula
        assert re.search(
            rf"(^|[\s(]){re.escape('$' + formula + '$')}(?![0-9A-Za-z])", rest, re.MULTILINE
        ), formula
    for formula in inline + displayed:
        assert set(re.findall(r"\\([A-Za-z]+)", formula)) <= COMMANDS, formula
        # Markdown takes \, \{ \\ for escapes, }_ and * for emphasis, <a for HTML, | for a cell.
        assert not re.search(r"\\[!-/:-@\[-`{-~]|[^0-9A-Za-z]_|[*|<>]", formula), formula
        assert not re.search(r"^\s*([-+*#>]\s|=+$|\d+\.|$)", formula, re.MULTILINE), (
            "a line that Markdown would take"
        )
        assert formula.count("{") == formula.count("}"), formula


@each_page
def test_tables_are_whole(path: Path):
    for rows in re.findall(r"(?:^\|.*\|$\n)+", prose(path), flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows.splitlines()}
        assert len(widths) == 1, rows


def test_every_figure_is_shown_and_says_in_words_what_it_shows(figures):
    shown = "".join(map(text, PAGES))
    for name in figures.NAMES:
        assert f"![{figures.alt(name)}](figures/{name}.svg)" in shown
        svg = text(FOLDER / "figures" / f"{name}.svg")
        assert figures.is_current(name, svg)
        assert "<text" in svg, "text stays text"
    assert sorted(p.stem for p in (FOLDER / "figures").iterdir()) == sorted(figures.NAMES)


def test_a_figure_is_the_same_but_for_last_digits(figures):
    svg = text(FOLDER / "figures" / "scores.svg")
    number = re.search(r"-1\.\d{6}(?=,)", svg)
    assert number is not None
    for moved, same in ((1e-7, True), (1e-3, False)):
        other = svg.replace(number[0], f"{float(number[0]) + moved:.9f}", 1)
        assert figures.is_current("scores", other) is same
    assert not figures.is_current("scores", svg.replace("reverse_kl", "forward_kl"))
    assert not figures.is_current("scores", svg.replace("dc:description", "dc:other"))
    assert not figures.is_current("scores", "<svg")
    assert not figures.is_current("margin", svg)


def test_a_figure_is_drawn_the_same_twice(figures):
    assert figures.svg("sft") == figures.svg.__wrapped__("sft")
    assert "<dc:date>" not in figures.svg("sft")


def curves(figures, name: str, panel: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the curves that a figure's file holds, by label and style."""
    held = re.search(
        r"<dc:description>(.*?)</dc:description>", text(FOLDER / f"figures/{name}.svg")
    )
    assert held is not None
    one = json.loads(held[1].replace("&quot;", '"').replace("&amp;", "&"))["panels"][panel]
    low, high, n = one["x"]
    x = np.linspace(low, high, n)
    return {f"{s[0]}{' dashed' * s[2]}": (x, np.array(s[4])) for s in one["series"]}


def test_the_curves_are_the_formulas_by_hand(figures):
    """The plotted numbers, against the formula written out and a difference quotient."""
    x, loss = curves(figures, "margin", 0)["loss"]
    np.testing.assert_allclose(loss, np.log1p(np.exp(-x)), rtol=1e-6)
    _, slope = curves(figures, "margin", 0)["slope dashed"]
    np.testing.assert_allclose(slope, -1 / (1 + np.exp(x)), rtol=1e-6)
    p, tv = curves(figures, "divergences", 1)["TV"]
    np.testing.assert_allclose(tv, abs(p - 0.3), rtol=1e-6)
    p, pull = curves(figures, "sft", 1)["dft_loss"]
    np.testing.assert_allclose(pull, p * (1 - p), rtol=1e-5)
    theta, k3 = curves(figures, "estimators", 1)["E[∇k₃]"]
    policy = torch.sigmoid(torch.tensor(theta)).numpy()
    np.testing.assert_allclose(k3, policy - 0.5, rtol=1e-5, atol=1e-8)
    u, apo = curves(figures, "anchored", 4)["chosen"]
    np.testing.assert_allclose(apo, 1 / (1 + np.exp(-u)) + 1 / (1 + np.exp(2 + u)), rtol=1e-6)
