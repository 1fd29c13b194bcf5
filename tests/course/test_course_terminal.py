"""Pages as plain characters."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from rich.console import Console

from tunemath.course.book import exercises
from tunemath.course.formulas import readable
from tunemath.course.grading import grade
from tunemath.course.terminal import graded, question


@pytest.mark.parametrize("each", exercises(), ids=lambda each: each.name)
def test_no_latex_is_left(each):
    for text in (each.question, each.second, *each.hints):
        plain = readable(text)
        assert not re.search(r"\$|\\[a-zA-Z]|[_^]\{|<!--", plain), plain


@pytest.mark.parametrize(
    ("latex", "plain"),
    [
        (r"$\sigma_k^2$", "`σₖ²`"),
        (r"$d_{out} \times d_{in}$", "`d_out × d_in`"),
        (r"$e^{\log p}$", "`e^(log p)`"),
        (r"$W'$", "`W′`"),
        ("$$ \\frac{a}{b} $$\n<!-- a / b -->", "\n    a / b\n"),
    ],
)
def test_a_formula_in_characters(latex, plain):
    assert readable(latex) == plain


def shown(renderable) -> str:
    console = Console(width=80, record=True, file=StringIO())
    console.print(renderable)
    return console.export_text()


def test_a_question_fits_80_columns():
    for each in exercises():
        text = shown(question(each))
        assert each.title in text
        assert max(map(len, text.splitlines())) <= 80


def test_a_grade_says_call_and_mistake():
    one = exercises()[0]
    source = one.solution.replace("answer.mean()", "np.mean(losses)")
    text = shown(graded(grade(source, one.parts)))
    assert "✗ answer_only_loss: right in" in text
    assert "mean over all tokens." in text
    assert "0.525" in text
