"""Text that the chat template adds of its own: a default system prompt, a date.

Whatever the template writes that no row declares is trained on as context all the same, and a date
makes tomorrow's prompt another one. It is found by rendering the roles of a conversation with
placeholders for their contents, and looking at what else comes out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from tunemath.mask.rows import Example, Message
from tunemath.mask.template import Template
from tunemath.mask.tokenize import Tokenizer

__all__ = ["clock_dependent", "undeclared_text"]

_CLOCKS = datetime(2001, 2, 3, 4, 5, 6), datetime(2031, 11, 12, 13, 14, 15)
_PLACEHOLDER = re.compile("\ue000[0-9]+\ue001")
_WORD = re.compile(r"[^\W\d_]+")


def undeclared_text(
    examples: Sequence[Example], template: Template, tokenizer: Tokenizer
) -> list[tuple[Example, str]]:
    """Return the examples to which the template adds text, each with that text.

    Control tokens, role names and single words (``[INST]``, ``USER:``) are the template's markup;
    two words or more between them, outside every message, are text.

    Valid when the template writes contents as they are; one that quotes or edits them is refused
    elsewhere.
    """
    found: dict[tuple[str, ...], str] = {}
    for roles in {_roles(example) for example in examples}:
        found[roles] = _added(roles, template, tokenizer)
    return [(example, found[_roles(example)]) for example in examples if found[_roles(example)]]


def clock_dependent(examples: Sequence[Example], template: Template) -> list[Example]:
    """Return the examples whose text differs between two dates."""
    early, late = (template.at(moment) for moment in _CLOCKS)
    roles = {_roles(example) for example in examples}
    differs = {each: _skeleton(each, early) != _skeleton(each, late) for each in roles}
    return [example for example in examples if differs[_roles(example)]]


def _roles(example: Example) -> tuple[str, ...]:
    return tuple(message.role for message in example.messages)


def _skeleton(roles: Sequence[str], template: Template) -> str:
    """Return the conversation with a placeholder for each content."""
    messages = [Message(role, f"\ue000{index}\ue001") for index, role in enumerate(roles)]
    return template.full(messages)


def _added(roles: Sequence[str], template: Template, tokenizer: Tokenizer) -> str:
    """Return the lines of two words or more that no message gave, joined by newlines."""
    text = _PLACEHOLDER.sub("\n", _skeleton(roles, template))
    text = tokenizer.controls(template.source).sub("\n", text)
    lines = (line.strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if len(_WORD.findall(line)) >= 2)
