"""The mask as a person sees it: each token, and whether it is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tunemath.mask.align import Encoded
from tunemath.mask.tokenize import Tokenizer

__all__ = ["sample_rows"]

_UNFINISHED = "\ufffd"


def sample_rows(
    encoded: Sequence[Encoded], tokenizer: Tokenizer, count: int = 6
) -> list[dict[str, Any]]:
    """Return ``count`` rows, evenly spaced, as records of tokens for a report."""
    last, count = len(encoded) - 1, min(count, len(encoded))
    picked = [round(index * last / max(count - 1, 1)) for index in range(count)]
    return [
        {"id": encoded[index].id, "tokens": list(_tokens(encoded[index], tokenizer))}
        for index in picked
    ]


def _tokens(encoded: Encoded, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """Yield the tokens with their own text; one that ends inside a character shows none.

    A token's text is what it adds to the text of the tokens just before it, because a decoder may
    treat the first of its tokens in another way.
    """
    ids, anchor, read = encoded.input_ids, 0, 0
    for index, token in enumerate(ids):
        before, through = (
            tokenizer.decode(ids[anchor:read]),
            tokenizer.decode(ids[anchor : index + 1]),
        )
        piece = ""
        if not through.endswith(_UNFINISHED) or index + 1 == len(ids):
            piece, anchor, read = through[len(before) :], read, index + 1
        yield {
            "text": piece,
            "supervised": bool(encoded.supervised[index]),
            "special": token in tokenizer.special_ids,
        }
