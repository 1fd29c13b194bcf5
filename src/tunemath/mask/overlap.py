"""Training rows that ask what an evaluation item asks, and rows that repeat each other."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunemath.mask.align import Answers, supervised_turns
from tunemath.mask.rows import Example, Item, Message

__all__ = ["overlap", "repeated"]

_SHOWN = 5


@dataclass(frozen=True)
class _Asked:
    """A question as it is compared: folded system text, user messages up to it, its answer."""

    system: str
    users: tuple[str, ...]
    answer: str
    id: str

    def same_question(self, other: _Asked) -> bool:
        """Compare the user messages that both have, from the last backwards."""
        both = min(len(self.users), len(other.users))
        return self.users[-both:] == other.users[-both:]


def overlap(
    examples: Sequence[Example], items: Sequence[Item], answers: Answers = "all"
) -> dict[str, Any]:
    """Return how many items ask what a supervised turn of a training row answers, and which.

    Texts are compared after Unicode NFKC, case folding and collapsing whitespace. Two questions are
    the same when the user messages that both have are, counted from the last: a question of one
    message is found wherever it stands in a conversation, a follow-up only after the same question.
    An item is shared when its system text is the row's too, when either has none, or when its
    answer is the row's; otherwise it stands under ``other_system``. Both pair each item's id with
    the first such training row.

    Valid for exact copies only: a paraphrase is not found.
    """
    asked: defaultdict[str, list[_Asked]] = defaultdict(list)
    for question in (each for example in examples for each in _trained(example, answers)):
        asked[question.users[-1]].append(question)
    shared: list[dict[str, str]] = []
    elsewhere: list[dict[str, str]] = []
    for item in items:
        question = _question(item.prompt, item.reference, item.id)
        if question is None:
            continue
        same = [one for one in asked.get(question.users[-1], ()) if one.same_question(question)]
        found = next((one for one in same if _one_task(one, question)), None)
        if found is not None:
            shared.append({"item": item.id, "train": found.id})
        elif same:
            elsewhere.append({"item": item.id, "train": same[0].id})
    return {"exact": len(shared), "rows": shared, "other_system": elsewhere}


def repeated(examples: Sequence[Example], pairs: bool = False) -> dict[str, Any]:
    """Return how many training rows are copies of an earlier one, and how many contradict another.

    Rows contradict each other when their conversations are the same up to the last answer, and that
    differs; of ``pairs`` (chosen and rejected in turn), when each prefers what the other does not.
    Texts are compared as they are. The places of the first few of each stand beside the counts.
    """
    sides = 2 if pairs else 1
    asked: defaultdict[Any, defaultdict[Any, list[str]]] = defaultdict(lambda: defaultdict(list))
    for start in range(0, len(examples), sides):
        row = tuple(side.messages for side in examples[start : start + sides])
        question = frozenset(row) if pairs else row[0][:-1]
        asked[question][row].append(examples[start].where)
    copies = [places for rows in asked.values() for places in rows.values() if len(places) > 1]
    clashes = [list(rows.values()) for rows in asked.values() if len(rows) > 1]
    return {
        "copies": sum(len(places) - 1 for places in copies),
        "contradictory": sum(len(places) for rows in clashes for places in rows),
        "first_copies": [places[:2] for places in copies[:_SHOWN]],
        "first_contradictory": [[places[0] for places in rows[:2]] for rows in clashes[:_SHOWN]],
    }


def _trained(example: Example, answers: Answers) -> Iterator[_Asked]:
    """Yield what each supervised turn answers; one that no user message precedes answers none."""
    for index in supervised_turns(example.messages, answers):
        before, answer = example.messages[:index], example.messages[index].content
        question = _question(before, answer, example.id)
        if question is not None:
            yield question


def _question(messages: Sequence[Message], answer: str, name: str) -> _Asked | None:
    users = tuple(_fold(message.content) for message in messages if message.role == "user")
    system = " ".join(message.content for message in messages if message.role == "system")
    return _Asked(_fold(system), users, _fold(answer), name) if users else None


def _one_task(one: _Asked, other: _Asked) -> bool:
    """Say whether two same questions are put for one task, as far as system text and answer say."""
    if one.system == other.system or not (one.system and other.system):
        return True
    return one.answer == other.answer


def _fold(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
