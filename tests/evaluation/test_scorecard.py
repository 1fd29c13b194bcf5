from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunemath.errors import ContractError, ShapeError
from tunemath.evaluation import Scorecard, build_scorecard, judge_gain, judge_retention
from tunemath.evaluation import winning_range as best_at
from tunemath.evaluation.decision import p_value, plain_verdict
from tunemath.findings import Status


def test_the_published_exercise():
    assert Scorecard(task=0.80, retention=0.72, weights=(0.7, 0.3)).score == pytest.approx(0.776)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.2, 0.5), "task score 1.2 must be between 0 and 1"),
        ((0.5, -0.1), "retention score -0.1"),
        ((0.5, 0.5, (0.7, 0.2)), "sum to 0.9; give 1"),
        ((0.5, 0.5, (1.5, -0.5)), "must be two numbers in"),
        ((0.5, 0.5, (1.0,)), "must be two numbers in"),
    ],
)
def test_a_scorecard_refuses_what_has_no_meaning(arguments, message):
    with pytest.raises(ContractError, match=message):
        Scorecard(*arguments)


@pytest.mark.parametrize(
    ("candidate", "others", "expected"),
    [
        ((0.8, 0.8), [(0.5, 0.5)], (0.0, 1.0)),
        ((0.5, 0.5), [(0.8, 0.8)], None),
        ((0.5, 0.5), [(0.5, 0.5)], (0.0, 1.0)),
        ((0.75, 0.5), [(0.25, 0.75)], (1 / 3, 1.0)),
        ((0.25, 0.75), [(0.75, 0.5)], (0.0, 1 / 3)),
        ((0.5, 0.5), [(1.0, 0.25), (0.25, 1.0)], None),
        ((0.75, 0.75), [(1.0, 0.25), (0.25, 1.0)], (1 / 3, 2 / 3)),
        ((0.5, 0.5), [(0.75, 0.5)], (0.0, 0.0)),
        ((0.8, 0.2), [], (0.0, 1.0)),
    ],
)
def test_winning_range(candidate, others, expected):
    found = best_at(Scorecard(*candidate), [Scorecard(*other) for other in others])
    assert found == (expected if expected is None else pytest.approx(expected))


grid = st.integers(0, 20).map(lambda k: k / 20)


@given(candidate=st.tuples(grid, grid), others=st.lists(st.tuples(grid, grid), max_size=4))
def test_winning_range_agrees_with_trying_every_weight(candidate, others):
    found = best_at(Scorecard(*candidate), [Scorecard(*other) for other in others])
    for weight in np.linspace(0, 1, 101):
        lead = min(
            (
                weight * (candidate[0] - task) + (1 - weight) * (candidate[1] - kept)
                for task, kept in others
            ),
            default=0.0,
        )
        inside = found is not None and found[0] - 1e-9 <= weight <= found[1] + 1e-9
        if abs(lead) > 1e-9:
            assert inside == (lead > 0)


def results(correct: int, items: int, start: int = 0):
    return [
        {"id": f"i{k}", "score": int(start <= k < start + correct), "reference": "x"}
        for k in range(items)
    ]


def arms(base=(6, 240), prompted=(15, 240), tuned=(104, 230)):
    return {
        name: {"task": results(task, 150), "retention": results(kept, 300)}
        for name, (task, kept) in (("base", base), ("prompted", prompted), ("tuned", tuned))
    }


MOVEMENT = {
    "task": {"kl": 0.83, "low": 0.7, "high": 0.9, "positions": 10},
    "retention": {"kl": 0.05, "low": 0.04, "high": 0.06, "positions": 10},
}


def test_the_scorecard_of_a_run():
    card = build_scorecard(arms(), (0.7, 0.3), 0.10, MOVEMENT)
    json.dumps(card, allow_nan=False)
    tuned = card["arms"]["tuned"]["task"]
    assert (tuned["correct"], tuned["items"], tuned["score"]) == (104, 150, 104 / 150)
    difference = card["differences"]["task"]["tuned - base"]
    assert (difference["wins"], difference["losses"]) == (98, 0)
    assert difference["p"] == 0.5**97
    assert card["differences"]["retention"]["tuned - base"]["difference"] == pytest.approx(-1 / 30)
    assert card["weighted"]["base"] == pytest.approx(0.7 * 6 / 150 + 0.3 * 0.8)
    low = (10 / 300) / (10 / 300 + 89 / 150)
    assert card["winning_range"] == {"low": pytest.approx(low), "high": 1.0}
    assert card["movement"]["retention"] == {"kl": 0.05, "low": 0.04, "high": 0.06}
    assert card["retention_margin"] == 0.10
    assert set(card) == {
        "arms",
        "differences",
        "weights",
        "weighted",
        "winning_range",
        "movement",
        "retention_margin",
        "sentence",
    }


def test_the_sentence_says_the_numbers_and_what_to_do():
    sentence = build_scorecard(arms(), movement=MOVEMENT)["sentence"]
    assert "104 of 150 task items correctly (69.3 %)" in sentence
    assert "65.3 points above the base (95 % interval +56.8 to +72.3" in sentence
    assert "exact McNemar p < 0.0001" in sentence
    assert "59.3 points above the base with examples in its prompt" in sentence
    assert "Retention moved by -3.3 points" in sentence
    assert "kept to within the margin of 10 points" in sentence
    assert "0.83 on task items and 0.05 on retention items (nats)" in sentence
    assert sentence.endswith("On these scores, use the tuned model.")
    assert sentence.count(". ") == 3


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({"tuned": (104, 180)}, "do not use the tuned model"),
        ({"tuned": (104, 212)}, "evaluate more retention items"),
        ({"tuned": (8, 240), "prompted": (7, 240)}, "the gain is not shown"),
        ({"tuned": (0, 240)}, "do not use the tuned model"),
        ({"prompted": (140, 240)}, "do not use the tuned model"),
    ],
)
def test_the_advice_follows_the_evidence(changed, advice):
    assert advice in build_scorecard(arms(**changed))["sentence"]


def test_without_retention_there_is_no_weighted_score():
    items = {name: {**sets, "retention": None} for name, sets in arms().items()}
    card = build_scorecard(items)
    assert card["weighted"] is card["winning_range"] is card["differences"]["retention"] is None
    assert card["movement"] is None
    assert "Retention was not measured" in card["sentence"]
    assert "measure retention before using" in card["sentence"]


def test_arms_on_other_items_are_refused():
    items = arms()
    items["prompted"]["task"] = items["prompted"]["task"][:-1]
    with pytest.raises(
        ShapeError, match=r"task items of tuned \(150\) and prompted \(149\) differ"
    ):
        build_scorecard(items)
    items = arms()
    items["base"]["task"] = items["base"]["task"][::-1]
    with pytest.raises(ShapeError, match="evaluate both on the same items in the same order"):
        build_scorecard(items)


def difference(point, low, high, p):
    return {"difference": point, "low": low, "high": high, "p": p}


UP, FLAT = difference(0.2, 0.1, 0.3, 0.001), difference(0.0, -0.1, 0.1, 1.0)
DOWN, DIP = difference(-0.2, -0.3, -0.1, 0.001), difference(-0.05, -0.15, 0.05, 0.4)


@pytest.mark.parametrize(
    ("base", "prompted", "status"),
    [
        (UP, UP, Status.PASS),
        (UP, FLAT, Status.PASS),
        (UP, DIP, Status.INSUFFICIENT_EVIDENCE),
        (UP, DOWN, Status.FAIL),
        (FLAT, FLAT, Status.INSUFFICIENT_EVIDENCE),
        (DIP, UP, Status.INSUFFICIENT_EVIDENCE),
        (DOWN, UP, Status.FAIL),
        (difference(0.1, -0.01, 0.2, 0.06), UP, Status.INSUFFICIENT_EVIDENCE),
    ],
)
def test_the_rule_of_gain(base, prompted, status):
    assert judge_gain({"tuned - base": base, "tuned - prompted": prompted}) is status


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [
        (-0.05, 0.02, Status.PASS),
        (-0.0999, -0.01, Status.PASS),
        (-0.10, 0.0, Status.INSUFFICIENT_EVIDENCE),
        (-0.2, -0.05, Status.INSUFFICIENT_EVIDENCE),
        (-0.2, -0.10, Status.INSUFFICIENT_EVIDENCE),
        (-0.2, -0.11, Status.FAIL),
    ],
)
def test_the_rule_of_retention(low, high, status):
    assert judge_retention({"low": low, "high": high}, 0.10) is status


# --- what the sentence says, where its numbers change their words


@pytest.mark.parametrize(
    ("p", "words"),
    [(1e-4, "p = 0.0001"), (np.nextafter(1e-4, 0), "p < 0.0001"), (0.03125, "p = 0.0312"),
     (0.5, "p = 0.5"), (1.0, "p = 1")],
)  # fmt: skip
def test_a_very_small_p_is_only_bounded(p, words):
    assert p_value(p) == words


def scored(task: float, kept: tuple[float, float] | None) -> dict:
    """Return a card with a difference in the task, and an interval of retention."""
    none = {"difference": task, "low": -0.5, "high": 0.5, "p": 0.2}
    lost = {"difference": -0.0123, "low": kept[0], "high": kept[1], "p": 0.3} if kept else None
    return {
        "arms": {"tuned": {"task": {"correct": 3, "items": 8, "score": 0.375}}},
        "differences": {
            "task": {"tuned - base": none, "tuned - prompted": none},
            "retention": lost and {"tuned - base": lost},
        },
        "retention_margin": 0.1,
        "movement": None,
    }


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (0.0, "level with the base (95 % interval -50.0 to +50.0, exact McNemar p = 0.2)"),
        (0.01, "1.0 points above the base (95 %"),
        (-0.01, "1.0 points below the base (95 %"),
    ],
)
def test_a_difference_has_its_side(task, words):
    sentence = plain_verdict(scored(task, None))
    assert sentence.startswith("The tuned model answers 3 of 8 task items correctly (37.5 %): ")
    assert words in sentence


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ((-0.099, 0.01), "kept to within the margin of 10 points."),
        ((-0.1, 0.01), "undecided against the margin of 10 points, which the interval contains."),
        ((-0.3, -0.1), "undecided against the margin"),
        ((-0.3, -0.101), "lost by more than the margin of 10 points."),
    ],
)
def test_what_became_of_retention_is_said(kept, words):
    sentence = plain_verdict(scored(0.0, kept))
    assert "Retention moved by -1.2 points from the base (95 % interval " in sentence
    assert words in sentence
