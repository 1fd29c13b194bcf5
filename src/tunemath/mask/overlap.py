"""Training prompts that are also evaluation items."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from tunemath.mask.rows import Example, Item, Message

__all__ = ["overlap"]


def overlap(examples: Sequence[Example], items: Sequence[Item]) -> dict[str, Any]:
    """Return how many items ask what a training row asks, and which.

    Two prompts are the same when their system text and last user message are, after Unicode NFKC,
    case folding and collapsing whitespace. ``rows`` pairs each such item's id with the first
    training row that asks it.

    Valid for exact copies only: a paraphrase is not found.
    """
    asked: dict[tuple[str, str], Example] = {}
    for example in examples:
        asked.setdefault(_key(example.messages), example)
    shared = [(item, asked[_key(item.prompt)]) for item in items if _key(item.prompt) in asked]
    return {
        "exact": len(shared),
        "rows": [{"item": item.id, "train": example.id} for item, example in shared],
    }


def _key(messages: Sequence[Message]) -> tuple[str, str]:
    """Return the system text and the last user message, normalised."""
    system = " ".join(message.content for message in messages if message.role == "system")
    user = [message.content for message in messages if message.role == "user"][-1:]
    return _fold(system), _fold("".join(user))


def _fold(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
