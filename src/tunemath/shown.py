"""What strangers wrote, made fit to be shown: nothing acts on a terminal, and all of it is cut."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["clean", "clip", "one_line", "shown"]

# Control characters but line feed and tab; separators of lines and paragraphs; overrides of the
# writing direction; halves of surrogate pairs.
_UNFIT = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)
_LONGEST_NUMBER = 2000  # bits; Python takes the square of the digits to write one out
_LONGEST_MESSAGE = 4000


def clean(text: Any) -> str:
    r"""Return untrusted text with nothing that could act on a terminal or reorder a line.

    Control characters and overrides of the writing direction become visible; halves of
    surrogate pairs become U+FFFD. Line ends and tabs stay.

    >>> clean("a\x1b[31mb\u202ec\r\nd")
    'a␛[31mb⟨U+202E⟩c\nd'
    """
    whole = str(text).replace("\r\n", "\n").replace("\r", "\n")
    return _UNFIT.sub(lambda found: _visible(found[0]), whole)


def _visible(character: str) -> str:
    code = ord(character)
    if code < 32:
        return chr(0x2400 + code)
    return "\N{REPLACEMENT CHARACTER}" if 0xD800 <= code < 0xE000 else f"⟨U+{code:04X}⟩"


def one_line(text: Any, limit: int = _LONGEST_MESSAGE) -> str:
    r"""Return untrusted text cleaned, in one line of some ``limit`` characters: an error message.

    >>> one_line("no such file: a\nerror: b")
    'no such file: a␊error: b'
    """
    return clip(text, limit).replace("\n", "␊").replace("\t", "␉")


def clip(text: Any, limit: int) -> str:
    """Return cleaned text of at most ``limit`` characters, saying how many were left out.

    >>> clip("abcdefgh", 5)
    'abcde… (3 characters more)'
    """
    whole = str(text)
    left = len(whole) - limit
    return clean(whole) if left <= 0 else f"{clean(whole[:limit])}… ({left:,} characters more)"


def shown(value: Any, limit: int = 80) -> str:
    r"""Return a value as JSON of at most ``limit`` characters, for a message.

    It is cut while it is written, so a value that holds itself, or a thousand times the same, costs
    no more than another.

    >>> shown({"rank": [1, 2.5, None], "name": "a\x1b"}), shown("abcdefghij", 8)
    ('{"rank": [1, 2.5, null], "name": "a\\u001b"}', '"abcd...')
    >>> holds_itself = []; holds_itself.append(holds_itself); shown(holds_itself, 9)
    '[[[[[[...'
    """
    text = ""
    for piece in _pieces(value, limit):
        text += piece
        if len(text) > limit:
            text = text[: limit - 3] + "..."
            break
    return one_line(text.encode(errors="backslashreplace").decode())


def _pieces(value: Any, limit: int) -> Iterator[str]:
    """Yield JSON a little at a time."""
    if isinstance(value, Mapping):
        yield "{"
        for number, (key, inner) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _pieces(key if isinstance(key, str) else str(key)[:limit], limit)
            yield ": "
            yield from _pieces(inner, limit)
        yield "}"
    elif isinstance(value, list | tuple | set | frozenset):
        yield "["
        for number, inner in enumerate(itertools.islice(value, limit)):
            yield ", " if number else ""
            yield from _pieces(inner, limit)
        yield "]"
    elif isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER:
        yield f"a whole number of {value.bit_length():,} bits"
    elif isinstance(value, str | bool | int | float) or value is None:
        whole = value[: limit + 1] if isinstance(value, str) else value
        yield json.dumps(whole, ensure_ascii=False)
    else:
        yield json.dumps(str(value)[: limit + 1], ensure_ascii=False)
