"""The memory of a run's stages beside the training step: what they hold above weights, in bytes.

Passes without gradients keep keys and values, and have one layer's working space at a time. What
libraries and allocators take for themselves is not in these figures.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunemath.budget.memory import TILE

__all__ = [
    "MOVEMENT_BYTES",
    "PASS_LOGITS",
    "PROBE_LOGITS",
    "Widths",
    "answering_bytes",
    "choosing_bytes",
    "holding_bytes",
    "moving_bytes",
    "proving_bytes",
]

_FLOAT32 = 4
PROBE_LOGITS = 1 << 22
"""The most logits that the probe of an update's product keeps."""
PASS_LOGITS = 1 << 24
"""The most logits of one pass of a probe."""
MOVEMENT_BYTES = 256 * 2**20
"""The bytes of logits, never held, by which measuring movement cuts its batches."""
_PART = 1 << 20
"""The numbers of a part of a tensor, by which products are held against base and update."""
_ARRAYS = 6
"""Arrays of a part of a probe's logits that are compared: two of them, and what is made."""
_FITTED = 11
"""Arrays of a part of a tensor: it before, after and as it is there, each rounded, and between."""


@dataclass(frozen=True)
class Widths:
    """A decoder's shapes, and the bytes of its numbers."""

    hidden: int
    """D."""
    intermediate: int
    """I."""
    layers: int
    """L."""
    heads: int
    """H."""
    kv_heads: int
    """K."""
    head_dim: int
    vocab: int
    """V."""
    element: int = _FLOAT32
    """e, bytes of an activation."""
    device: str = "cpu"

    def cache(self, rows: int, places: int) -> int:
        """Return the bytes of keys and values: ``2 L K d e`` a place of a row."""
        return self.layers * 2 * self.kv_heads * self.head_dim * self.element * rows * places

    def working(self, rows: int, tokens: int, places: int) -> int:
        """Return what one layer needs for B rows of T tokens that see S places.

        The feed-forward module has two streams and three wide tensors; the attention two streams,
        queries, what it returns, and with a mask its keys and values again, for every query head
        where these are more.
        """
        feed = (2 * self.hidden + 3 * self.intermediate) * rows * tokens
        own = (2 * self.hidden + 2 * self.heads * self.head_dim) * rows * tokens
        repeats = 2 * self.heads if self.heads > self.kv_heads else 0
        return self.element * max(feed, own + repeats * self.head_dim * rows * places)


def answering_bytes(widths: Widths, rows: int, shared: int, tokens: int, new: int) -> int:
    """Return what greedy generation holds: B rows of T tokens behind P shared ones, and N new.

    The shared prefix's keys and values are kept beside each batch's own. A token's keys or values
    are joined to those of one layer at a time, so that layer's are there twice.

    Example: a model of one layer with D = 2, I = 4, one head of 2, V = 8; one row of 1 token, and 1
    new. Cache 2·2·4·2 = 32 bytes; reading 1 token, 4·(2·2 + 3·4) = 64, and half the cache of a
    layer again, 16; logits in two precisions 2·4·8 = 64, after it.

        >>> answering_bytes(Widths(2, 4, 1, 1, 1, 2, 8), rows=1, shared=0, tokens=1, new=1)
        112
    """
    own = widths.cache(1, shared) if shared else 0
    read = widths.cache(rows, shared + tokens)
    read += widths.working(rows, tokens, shared + tokens) + rows * tokens * (shared + tokens)
    places = shared + tokens + new
    joined = widths.cache(rows, places) // (2 * widths.layers)
    step = max(widths.working(rows, 1, places) + joined, 2 * _FLOAT32 * rows * widths.vocab)
    return own + max(read, widths.cache(rows, places) + step)


def choosing_bytes(widths: Widths, rows: int, shared: int, tokens: int) -> int:
    """Return what scoring choices holds: B rows of T tokens, choices included, behind P shared."""
    places = shared + tokens
    own = widths.cache(1, shared) if shared else 0
    mask = rows * tokens * places * (widths.element + 1)
    states = widths.element * widths.hidden * rows * tokens
    tile = _FLOAT32 * min(TILE[widths.device], rows * tokens * widths.vocab)
    work = max(widths.working(rows, tokens, places) + mask, states + tile)
    return own + widths.cache(rows, places) + work


def moving_bytes(widths: Widths, rows: int, shared: int, tokens: int, kept: int = 0) -> int:
    """Return what measuring KL(tuned ‖ base) holds: at most B rows of T tokens behind P shared.

    ``kept`` are the positions of which a tuned model that is gone left its states.
    """
    together = max(1, min(rows, MOVEMENT_BYTES // (_FLOAT32 * widths.vocab * tokens)))
    both = 2 * widths.cache(1, shared) if shared else 0
    states = widths.element * widths.hidden
    batch = states * together * tokens
    prefix = 2 * states * shared
    tile = 2 * _FLOAT32 * min(TILE[widths.device], together * tokens * widths.vocab)
    reading = widths.cache(together, shared + tokens)
    reading += widths.working(together, tokens, shared + tokens)
    return both + prefix + batch + max(reading, 2 * batch + tile) + states * kept


def proving_bytes(widths: Widths, rows: int, tokens: int, positions: int, largest: int) -> int:
    """Return what the proof of the artefact holds: logits of a probe, or one weight's change.

    ``tokens`` are those of the longest of its rows, ``positions`` those of their answers, and
    ``largest`` the numbers of the largest changed weight.
    """
    numbers = min(PROBE_LOGITS, positions * widths.vocab)
    together = max(1, min(rows, PASS_LOGITS // (widths.vocab * tokens)))
    reading = widths.working(together, tokens, tokens) + _FLOAT32 * min(PASS_LOGITS, numbers)
    comparing = _FLOAT32 * numbers + _ARRAYS * _FLOAT32 * min(_PART, numbers)
    return _FLOAT32 * numbers + max(reading, comparing, 2 * _FLOAT32 * largest)


def holding_bytes(largest: int) -> int:
    """Return what holding a product's tensors against base and update takes, no model beside it.

    ``largest`` are the numbers of the largest changed tensor, of which a part is there at a time.
    """
    return _FITTED * _FLOAT32 * min(_PART, largest)
