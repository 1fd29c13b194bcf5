"""What counts as asking again what training answered, and as repeating a row."""

from __future__ import annotations

import pytest

from tunemath.mask import Example, Item, Message
from tunemath.mask.overlap import overlap, repeated


def turns(*texts: str, system: str = "") -> tuple[Message, ...]:
    """Return a conversation that the user opens, with a system message where there is one."""
    spoken = [Message(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)]
    return ((Message("system", system),) if system else ()) + tuple(spoken)


def row(*texts: str, system: str = "", name: str = "t") -> Example:
    return Example(name, turns(*texts, system=system), f"train.jsonl:{name}")


def item(*texts: str, answer: str = "Jupiter", system: str = "") -> Item:
    return Item("i", turns(*texts, system=system), "test.jsonl:1", answer=answer)


LARGEST = "Largest planet?"
FIRST_TURN = row(LARGEST, "Jupiter", "Thanks, and the smallest?", "Mercury")


@pytest.mark.parametrize(
    ("trained", "asked", "shared", "elsewhere"),
    [
        (FIRST_TURN, item(LARGEST), 1, 0),
        (FIRST_TURN, item("Thanks, and the smallest?"), 1, 0),
        (FIRST_TURN, item(LARGEST, "Jupiter", "thanks,  and the SMALLEST?"), 1, 0),
        (row(LARGEST, "Jupiter", system="Answer in one word."), item(LARGEST), 1, 0),
        (row(LARGEST, "Jupiter"), item(LARGEST, system="Answer in one word."), 1, 0),
        (row(LARGEST, "Jupiter", system="Be brief."), item(LARGEST, system="Be terse."), 1, 0),
        # A question that stands alone is found within any conversation.
        (row("Hi", "Hello", LARGEST, "Jupiter"), item(LARGEST), 1, 0),
        (row(LARGEST, "Jupiter"), item("Hi", "Hello", LARGEST), 1, 0),
        # No false alarms: another task for the same text, a follow-up to another question.
        (row("chien", "dog", system="To English."), item("chien", system="To German."), 0, 1),
        (
            row("Tell me of Rome.", "Old.", "How large is it?", "Large."),
            item("Tell me of Oslo.", "North.", "How large is it?"),
            0,
            0,
        ),
        (row("Largest planets?", "Jupiter"), item(LARGEST), 0, 0),
    ],
)
def test_what_is_shared(trained, asked, shared, elsewhere):
    found = overlap([trained], [asked])
    assert (found["exact"], len(found["other_system"])) == (shared, elsewhere)
    assert found["rows"] == [{"item": "i", "train": "t"}] * shared


def test_only_turns_that_are_trained_on_are_compared():
    assert overlap([FIRST_TURN], [item(LARGEST)], "last")["exact"] == 0
    assert overlap([FIRST_TURN], [item("Thanks, and the smallest?")], "last")["exact"] == 1


def test_an_opening_of_the_assistant_answers_no_question():
    messages = (Message("assistant", "Hello"), *turns("2+2?", "4"))
    example = Example("t", messages, "train.jsonl:1")
    assert overlap([example], [item("2+2?", answer="4")])["exact"] == 1


def test_copies_and_contradictions_are_counted_in_rows():
    rows = [
        row("2+2", "4", name="1"), row("2+2", "4", name="2"), row("2+2", "5", name="3"),
        row("2+3", "5", name="4"), row("2+2", "4", name="5"),
    ]  # fmt: skip
    found = repeated(rows)
    assert (found["copies"], found["contradictory"]) == (2, 4)
    assert found["first_copies"] == [["train.jsonl:1", "train.jsonl:2"]]
    assert found["first_contradictory"] == [["train.jsonl:1", "train.jsonl:3"]]
    assert repeated(rows[2:4]) == {
        "copies": 0, "contradictory": 0, "first_copies": [], "first_contradictory": [],
    }  # fmt: skip


def test_another_context_is_another_question():
    rows = [row("a", "b", "and?", "1"), row("c", "d", "and?", "2")]
    assert repeated(rows)["contradictory"] == 0
    systems = [row("a", "1", system="x"), row("a", "2", system="y")]
    assert repeated(systems)["contradictory"] == 0


def test_pairs_contradict_when_each_prefers_what_the_other_does_not():
    def pair(chosen: str, rejected: str, name: str) -> list[Example]:
        return [row("a", chosen, name=name), row("a", rejected, name=name)]

    rows = [*pair("x", "y", "1"), *pair("x", "z", "2"), *pair("y", "x", "3"), *pair("x", "y", "4")]
    found = repeated(rows, pairs=True)
    assert (found["copies"], found["contradictory"]) == (1, 3)
    assert found["first_contradictory"] == [["train.jsonl:1", "train.jsonl:3"]]
