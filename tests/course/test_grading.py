"""The reference solutions pass, and each known mistake is recognised by its name."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest

from tunemath.course.book import exercise, exercises
from tunemath.course.exercise import Case, Mistake, Part, Raises
from tunemath.course.grading import cases_of, grade, grade_part, run, same, shown
from tunemath.errors import CourseError

PARTS = [(each, part) for each in exercises() for part in each.parts]
MISTAKES = [(part, mistake) for _, part in PARTS for mistake in part.mistakes]


def quietly(function, *arguments):
    with np.errstate(all="ignore"):
        return function(*arguments)


@pytest.mark.parametrize("each", exercises(), ids=lambda each: each.name)
def test_the_solution_passes_and_the_starter_does_not(each):
    done = grade(each.solution, each.parts)
    assert done.passed, done
    assert not grade(each.starter, each.parts).passed


@pytest.mark.parametrize(("each", "part"), PARTS, ids=lambda x: getattr(x, "function", ""))
def test_the_published_answer_is_the_oracles_and_the_solutions(each, part):
    arguments = part.published.arguments
    names, error = run(each.solution)
    assert not error
    assert same(part.answer, part.oracle(*arguments), part.tolerance)
    assert same(part.answer, names[part.function](*arguments), part.tolerance)


@pytest.mark.parametrize(("each", "part"), PARTS, ids=lambda x: getattr(x, "function", ""))
def test_other_random_cases_agree_too(each, part):
    names, _ = run(each.solution)
    for seed in range(1, 6):
        found = grade_part(part, names, seed)
        assert found.passed, found


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("part", "mistake"), MISTAKES, ids=[f"{p.function}: {m.name}" for p, m in MISTAKES]
)
def test_a_mistake_is_recognised_by_name(part, mistake):
    found = grade_part(part, {part.function: mistake.answer})
    assert not found.passed
    assert found.mistake == mistake.name
    assert found.message == mistake.message


def test_every_exercise_knows_at_least_four_mistakes_a_part():
    assert len(exercises()) == 10
    assert all(len(part.mistakes) >= 4 for _, part in PARTS)
    assert len({m.message for _, m in MISTAKES}) == len(MISTAKES)


@pytest.mark.parametrize("each", exercises(), ids=lambda each: each.name)
def test_the_signatures_are_those_of_the_starter(each):
    given, _ = run(each.starter)
    right, _ = run(each.solution)
    for part in each.parts:
        assert inspect.signature(given[part.function]) == inspect.signature(right[part.function])


# What the published notebook answers, by hand: these figures are not ours.
@pytest.mark.parametrize(
    ("which", "function", "answer"),
    [
        ("1", "answer_only_loss", 0.9),
        ("2", "kl", 0.4 * math.log(0.4 / 0.6) + 0.4 * math.log(0.4 / 0.3) + 0.2 * math.log(2)),
        ("3", "lora_parameters", 65_536),
        ("6", "adapter_parameters", 65_536),
        ("7", "prefix_parameters", 786_432),
        ("8", "dpo_loss", math.log(1 + math.exp(-0.3))),
        ("9", "score", 0.776),
    ],
)
def test_the_published_answers(which, function, answer):
    part = next(part for part in exercise(which).parts if part.function == function)
    assert part.answer == pytest.approx(answer, rel=1e-12)


HALVES = Part(
    "half",
    lambda x: x / 2,
    Case((4.0,)),
    2.0,
    lambda rng, size: Case((float(rng.integers(1, 10 * size)),)),
    (Mistake("doubled", lambda x: 2 * x, "That is twice."),),
    (Case((0.0,), "nothing"),),
)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def half(x):\n    return 2 * x", "That is twice."),
        ("def half(x): ...", "The function returned nothing: is there a `return`?"),
        ("def other(x): ...", "There is no function `half` in the answer"),
        ("half = 3", "`half` is a int; expected a function."),
        ("def half(): ...", "`half()` does not take 1 arguments"),
        ("def half(x):\n    return [x / 2]", "The answer has shape (1,); expected ()."),
        ("def half(x):\n    return float('nan')", "The answer is not finite"),
        ("def half(x):\n    raise KeyError(x)", "The function ended in an error where an answer"),
        ("def half(x):\n    return x / 3", "The value is not the expected one."),
        ("def half(x):\n    return 'two'", "The value is not the expected one."),
    ],
)
def test_what_is_said_of_an_answer(source, said):
    (found,) = grade(source, (HALVES,)).parts
    assert not found.passed
    assert found.message.startswith(said)


def test_the_line_of_an_error_is_named():
    (found,) = grade("def half(x):\n    y = x\n    return y / 0", (HALVES,)).parts
    assert found.given == "ZeroDivisionError in line 3: float division by zero"
    assert grade("x = (", (HALVES,)).error.startswith("line 1: '(' was never closed")
    assert grade("x = 1\ny = z", (HALVES,)).error == "line 2: NameError: name 'z' is not defined"


def test_an_answer_that_is_right_but_changes_its_arguments_is_not():
    part = Part("f", lambda x: float(sum(x)), Case((np.ones(3),)), 3.0,
                lambda rng, size: Case((rng.normal(size=size),)), ())  # fmt: skip
    source = "def f(x):\n    total = float(sum(x))\n    x *= 0\n    return total"
    (found,) = grade(source, (part,)).parts
    assert "changed its arguments" in found.message


def test_what_the_code_prints_is_kept():
    assert grade("print('hello')\ndef half(x): return x / 2", (HALVES,)).printed == "hello\n"


def test_an_edge_case_says_what_is_special():
    source = "def half(x):\n    return x / 2 if x else None"
    (found,) = grade(source, (HALVES,)).parts
    assert (found.why, found.given, found.expected) == ("nothing", "None", "0")


def test_cases_grow():
    sizes = [case.arguments[0] for case in cases_of(HALVES)]
    assert sizes[:2] == [4.0, 0.0]
    assert np.mean(sizes[2:8]) < np.mean(sizes[-6:])


@pytest.mark.parametrize(
    ("expected", "given", "equal"),
    [
        (1.0, 1, True),
        (1.0, np.array(1.0), True),
        (1.0, [1.0], False),
        (1.0, True, True),
        (1.0, "1.0", False),
        (None, None, True),
        (None, 0.0, False),
        (math.inf, math.inf, True),
        (0.0, 1e-14, True),
        ([1, 2], np.array([1, 2]), True),
        ((np.eye(2), 1.0), (np.eye(2), 1.0), True),
        ((np.eye(2), 1.0), np.eye(2), False),
        ({"a": "x"}, {"a": "x"}, True),
        ({"a": "x"}, {"a": "y"}, False),
        ({"a": "x"}, {"b": "x"}, False),
        (Raises(), 1.0, False),
    ],
)
def test_when_two_answers_are_the_same(expected, given, equal):
    assert same(expected, given, 1e-6) is equal


def test_arguments_are_shown_as_python():
    assert shown(np.array([0.5, 1.0])) == "np.array([0.5, 1. ])"
    assert shown({"a": [1, 2.0]}) == "{'a': [1, 2]}"
    assert shown(list(range(9))) == "[0, 1, 2, 3, 4, 5, 6, 7, …]"


def test_an_exercise_is_found_by_number_or_name_and_a_typo_is_told():
    assert exercise("2") is exercise("kl-movement")
    with pytest.raises(CourseError, match=r"no exercise 'kl-movment'; did you mean kl-movement\?"):
        exercise("kl-movment")
    with pytest.raises(CourseError, match="there are 1 to 10"):
        exercise("11")


@pytest.mark.parametrize("each", exercises(), ids=lambda each: each.name)
def test_a_page_is_whole(each):
    assert len(each.hints) == 3
    assert all((each.title, each.question, each.second, each.practice, each.sources))
    for part in each.parts:
        assert f"`{part.function}(" in each.question + each.second
