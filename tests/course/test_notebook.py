"""The notebooks: made from the exercises, executed, graded."""

from __future__ import annotations

import nbformat
import pytest

from processes import LIMIT
from tunemath.course.book import exercise, exercises
from tunemath.course.grading import run
from tunemath.course.notebook import build, check, draw, hint, write_notebooks
from tunemath.errors import CourseError


def functions_of(each, source):
    names, error = run(source)
    assert not error
    return [names[part.function] for part in each.parts]


def executed(notebook):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    return nbclient.NotebookClient(notebook, timeout=LIMIT, kernel_name="python3").execute()


def outputs(notebook) -> str:
    return "\n".join(
        output["data"].get("text/plain", "")
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "data" in output
    )


def test_a_notebook_grades_in_jupyter():
    each = exercise("1")
    wrong = each.solution.replace("answer.mean()", "np.mean(losses)")
    said = outputs(executed(build(each, wrong)))
    assert "Mean over all tokens: This is the mean over all tokens" in said


@pytest.mark.slow
@pytest.mark.parametrize("each", exercises(), ids=lambda each: each.name)
def test_every_notebook_runs_as_given_and_passes_when_solved(each):
    assert "✗" in outputs(executed(build(each)))
    solved = outputs(executed(build(each, each.solution)))
    assert solved.count("✓") == 2
    assert f"the figure of {each.name}" in solved


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("each", exercises(), ids=lambda each: each.name)
def test_every_mistake_is_recognised(each):
    right = functions_of(each, each.solution)
    for place, part in enumerate(each.parts):
        for mistake in part.mistakes:

            def wrong(*arguments, answer=mistake.answer):
                return answer(*arguments)

            wrong.__name__ = part.function
            answer = [*right[:place], wrong, *right[place + 1 :]]
            said = repr(check(each.name, *answer))
            assert mistake.message in said
            assert said.count("✗") == 1


def test_what_a_learner_made_is_escaped():
    def kl(tuned, base):
        return "<script>alert(1)</script>"

    markup = check("kl-movement", kl)._repr_html_()
    assert "<script>" not in markup
    assert "&lt;script&gt;" in markup


def test_hints_and_figures():
    each = exercise("8")
    assert repr(hint("8", 1)) == each.hints[0]
    with pytest.raises(CourseError, match="no hint 4; there are 1 to 3"):
        hint("8", 4)
    svg = draw("8", *functions_of(each, each.solution))._repr_html_()
    assert svg.startswith("<svg")


def test_written_notebooks_are_valid_and_never_overwritten(tmp_path):
    written = write_notebooks(tmp_path)
    assert [path.name for path in written][:2] == [
        "01-answer-only-loss.ipynb",
        "02-kl-movement.ipynb",
    ]
    for path in written:
        nbformat.validate(nbformat.read(path, as_version=4))
    written[0].write_text("mine")
    assert write_notebooks(tmp_path) == []
    assert written[0].read_text() == "mine"


def test_the_solution_is_in_no_notebook():
    for each in exercises():
        body = each.solution.split("def ")[1].splitlines()[1].strip()
        assert body not in nbformat.writes(build(each))
