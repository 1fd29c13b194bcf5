"""What a decoder keeps for the backward pass, from its shapes alone.

A tensor is kept by the operation whose gradient needs it: a norm and a non-linearity keep their
input, a product of two tensors both, fused attention its three inputs and its output. A linear
layer keeps its input only where its own weight is trained, or a low-rank update of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import groupby
from typing import Literal, Protocol

__all__ = ["Activations", "Attention", "Curves", "Decoder", "DecoderLayer", "Linear", "Passes"]

Attention = Literal["fused", "eager"]
"""``fused``: torch's scaled dot product or flash attention. ``eager``: all T × T scores."""

_FLOAT32 = 4


@dataclass(frozen=True)
class Passes:
    """Bytes of a model's body in one training step, above weights and optimizer state."""

    kept: int
    """Held when the last hidden states are there, for the backward pass."""
    backward: int
    """The most that is held in the backward pass, gradients included."""
    gradients: int
    """The part of ``backward`` that is gradients of weights."""
    forward: int
    """The most that is held in the forward pass."""
    reference: int
    """The most that a pass without gradients holds."""
    prefix: int = 0
    """The part of what is kept that is a prefix's keys and values, a copy a row."""


class Activations(Protocol):
    """What a step's passes hold, by the rows in memory and their length."""

    def passes(self, rows: int, tokens: int, *, fresh: bool = True) -> Passes:
        """Return the bytes for B rows of T tokens; ``fresh`` if gradients are made here."""
        ...


@dataclass(frozen=True)
class Curves:
    """Passes that were measured at three sizes: ``c + B (a T + b T²)`` for each figure.

    ``points`` are ((rows, tokens), passes) of one length, of half of it, and of half of it with
    twice the rows. Exact at these, and between them where a figure has no kink.
    """

    points: tuple[tuple[tuple[int, int], Passes], ...]

    def passes(self, rows: int, tokens: int, *, fresh: bool = True) -> Passes:
        """Return the bytes for B rows of T tokens, by the curves through the points."""
        found = Passes(**{key: self._at(key, rows, tokens) for key in _FIGURES})
        if fresh:
            return found
        return replace(found, backward=found.backward - found.gradients, gradients=0)

    def _at(self, key: str, rows: int, tokens: int) -> int:
        (whole, at), (half, below), (_, twice) = self.points
        (b, t), (_, h) = whole, half
        f, g, d = (getattr(one, key) for one in (at, below, twice))
        row = (d - g) / b  # a h + b h², as rows are added at length h
        rest = g - b * row
        square = ((f - rest) / b - row * t / h) / (t * t - t * h)
        line = row / h - square * h
        return max(0, round(rest + rows * (line * tokens + square * tokens * tokens)))


_FIGURES = tuple(field.name for field in fields(Passes))


@dataclass(frozen=True)
class Linear:
    """A linear layer's widths, and what of it is trained."""

    d_in: int
    d_out: int
    rank: int = 0
    """r of a LoRA on it."""
    dora: bool = False
    trained: bool = False
    """Whether its own weight is trained."""
    bias_trained: bool = False
    dropout: bool = False
    """Whether its low-rank update drops part of its input."""

    @property
    def keeps_input(self) -> bool:
        """Whether its gradient needs its input."""
        return self.trained or self.rank > 0

    @property
    def touched(self) -> bool:
        """Whether its output has a gradient though its input has none."""
        return self.keeps_input or self.bias_trained

    def own(self, element: int, shared: bool) -> int:
        """Return the bytes a token that it alone keeps: the update's, and its input's copies."""
        kept = self.rank * element + (2 * self.d_out * element if self.dora else 0)
        if self.rank and (self.dropout or not shared):
            kept += self.d_in * element
        if self.rank and self.dropout:  # the mask, as numbers on a CPU
            kept += self.d_in * element
        return kept


@dataclass(frozen=True)
class DecoderLayer:
    """A layer of one attention and one gated feed-forward module, each behind an RMS norm."""

    attention: tuple[Linear, ...]
    """Queries, keys and values, or all three in one."""
    output: Linear
    feed: tuple[Linear, ...]
    """Gate and up, or both in one."""
    down: Linear
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    norms_trained: bool = False
    qk_norm: bool = False
    after_attention: int = 0
    """m, the width of an adapter behind the attention; 0 where there is none."""
    after_feed: int = 0
    """m of an adapter behind the feed-forward module, or beside it."""
    prefix: int = 0
    """P, the places before its keys and values."""
    gradients: int = 0
    """Bytes of the gradients of its own and added weights."""
    upstream: bool = True
    """Whether anything before this layer is trained, so that its input has a gradient."""

    @property
    def hidden(self) -> int:
        """D, the width of the residual stream."""
        return self.down.d_out

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Every linear layer, in the order of the forward pass."""
        return (*self.attention, self.output, *self.feed, self.down)

    @property
    def live(self) -> bool:
        """Whether anything in this layer or before it is trained; else it keeps nothing."""
        own = self.norms_trained or self.prefix or self.after_attention or self.after_feed
        return self.upstream or bool(own) or any(one.touched for one in self.linears)


@dataclass(frozen=True)
class Decoder:
    """A stack of layers between an embedding and an output layer.

    Valid for families whose norms, rotary embeddings and gates are Llama's, in float32, or in
    bfloat16 with float32 adapters under autocast; right-padded rows need no mask. The small
    tensors of a step (positions, rotary angles, norms' scales) are left out.
    """

    layers: tuple[DecoderLayer, ...]
    element: int = _FLOAT32
    """Bytes of an activation."""
    attention: Attention = "fused"
    masked: bool = False
    """Whether attention has a mask, which takes T² numbers a row and repeats keys and values."""
    checkpointing: bool = False
    prompt: int = 0
    """P, virtual tokens that the layers read once for all rows."""
    final_norm_trained: bool = False
    first_gradients: int = 0
    """Bytes of gradients that are there before the last layer's: the output layer's."""
    last_gradients: int = 0
    """Bytes of gradients that come after the first layer's: the embedding's."""
    last_scratch: int = 0
    """Bytes of an embedding's gradient that is only added to the output layer's."""

    def passes(self, rows: int, tokens: int, *, fresh: bool = True) -> Passes:
        """Return the bytes for B rows of T tokens.

        Let k be what a layer keeps and g the gradients of its weights. Layers hold ``Σ k`` when
        the forward pass ends, or with checkpointing their inputs alone. The backward pass frees
        the layers from the last to the first while gradients come, so it holds at layer i
        ``Σ_{j ≤ i} k_j + Σ_{j > i} g_j`` and its own working space. ``fresh`` is false where the
        gradients are there already, and are added to.
        """
        places = rows * tokens
        width = self.layers[-1].hidden * self.element * places
        kept = [(layer, count, self._held(layer, rows, tokens)) for layer, count in self._alike]
        held = left = sum(count * one for _, count, one in kept)
        arrived = self.first_gradients if fresh else 0
        peaks = [(left + arrived, arrived)]
        for layer, count, one in reversed(kept):
            if not layer.live:
                break
            work = self._backward(layer, rows, tokens)
            # Alike layers are worst at the first of them to go or at the last.
            for done in {0, count - 1}:
                there = arrived + (done * layer.gradients if fresh else 0)
                peaks.append((left - done * one + there + work, there))
            left -= count * one
            arrived += count * layer.gradients if fresh else 0
        arrived += self.last_gradients if fresh else 0
        peaks.append((arrived + self.last_scratch + width, arrived))
        backward, gradients = max(peaks)
        final = (1 + self.final_norm_trained) * self.layers[-1].hidden * _FLOAT32 * places
        forward = held + max(self._forward(layer, places) for layer, _ in self._alike)
        return Passes(
            kept=held + final,
            backward=backward,
            gradients=gradients,
            forward=max(forward, held + final),
            reference=max(self._reference(layer, rows, tokens) for layer, _ in self._alike),
            prefix=sum(self._keys(layer, rows, layer.prefix) for layer in self.layers)
            * (not self.checkpointing),
        )

    @cached_property
    def _alike(self) -> list[tuple[DecoderLayer, int]]:
        """Runs of equal layers, first to last."""
        return [(layer, len(list(run))) for layer, run in groupby(self.layers)]

    def kept(self, layer: DecoderLayer, rows: int, tokens: int) -> int:
        """Return the bytes that a layer keeps for the backward pass.

        It goes through the layer in its order; before the first trained tensor nothing is kept.
        """
        e, d, inner = self.element, layer.hidden, layer.intermediate
        query, narrow = layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
        shared = e == _FLOAT32  # else each update casts its own copy of the input
        norm = ((2 if layer.norms_trained else 1) * d + 1) * _FLOAT32
        live = layer.upstream or layer.norms_trained
        numbers = norm if live else 0
        numbers += self._inputs(layer.attention, d, shared)
        live = live or bool(layer.prefix) or any(one.touched for one in layer.attention)
        if layer.qk_norm and live:
            numbers += (2 if layer.norms_trained else 1) * (query + narrow) * _FLOAT32
        whole = 0
        if live:
            numbers += 2 * query * e  # queries, and what attention returns: the output's input
            if len(layer.attention) == 1:
                # Values are a part of one tensor, kept whole; what attention returns is copied.
                numbers += (query + narrow) * e + query * e * layer.output.keeps_input
            whole = self._keys(layer, rows, tokens + layer.prefix)
            whole += self._scores(layer, rows, tokens)
        elif layer.output.keeps_input:
            numbers += query * e
        live = live or layer.output.touched
        if layer.after_attention:
            numbers += (d + layer.after_attention) * e
            live = True
        numbers += norm if live else 0
        numbers += self._inputs(layer.feed, d, shared)
        live = live or any(one.touched for one in layer.feed)
        numbers += 3 * inner * e if live else 0  # gate, its activation, up
        if layer.down.keeps_input and shared and not layer.down.dropout:
            numbers += inner * e  # their product
        if layer.after_feed:
            numbers += (d + layer.after_feed) * e
        numbers += sum(one.own(e, shared) for one in layer.linears)
        return numbers * rows * tokens + whole

    def _keys(self, layer: DecoderLayer, rows: int, places: int) -> int:
        """Return the bytes of a layer's keys and values, repeated for every query head or not."""
        repeated = self.masked or layer.prefix or self.attention == "eager"
        heads = layer.heads if repeated else layer.kv_heads
        return 2 * heads * layer.head_dim * self.element * rows * places

    def _inputs(self, group: Sequence[Linear], d: int, shared: bool) -> int:
        """Return the bytes a token of an input that several layers keep together."""
        together = any(one.trained or (one.rank and shared and not one.dropout) for one in group)
        return d * self.element if together else 0

    def _scores(self, layer: DecoderLayer, rows: int, tokens: int) -> int:
        pairs = rows * tokens * (tokens + layer.prefix)
        if self.attention == "eager":
            both = _FLOAT32 + (self.element if self.element != _FLOAT32 else 0)
            return layer.heads * pairs * both
        mask = pairs * self.element if self.masked else 0
        if layer.prefix and not self.masked:
            mask = pairs // rows * self.element
        return mask + layer.heads * _FLOAT32 * rows * tokens  # and the log-sum of each row

    def _held(self, layer: DecoderLayer, rows: int, tokens: int) -> int:
        """Return what is held of a layer until its backward pass: with checkpointing, its input."""
        if not layer.live:
            return 0
        prompt = self.kept(layer, 1, self.prompt) if self.prompt else 0
        if self.checkpointing:
            return layer.hidden * self.element * rows * tokens + prompt
        return self.kept(layer, rows, tokens) + prompt

    def _backward(self, layer: DecoderLayer, rows: int, tokens: int) -> int:
        """Return the working space of a layer's backward pass, above what is held of it.

        The most is needed at the feed-forward module's product: the residual's gradient, the
        product's, and those of both factors, while the product itself is freed if it was kept.
        """
        places = rows * tokens
        inner = 2 if layer.down.keeps_input and not layer.down.dropout else 3
        weight = layer.down.d_in * layer.down.d_out * _FLOAT32 if layer.down.trained else 0
        work = (layer.hidden + inner * layer.intermediate) * self.element * places + weight
        if not self.checkpointing:
            return work
        again = self.kept(layer, rows, tokens) - self._held(layer, rows, tokens)
        arriving = layer.hidden * self.element * places
        return again + max(work, arriving + self._forward(layer, places))

    def _forward(self, layer: DecoderLayer, places: int) -> int:
        """Return the working space of a layer's forward pass, above what it keeps."""
        plain = (layer.hidden + layer.intermediate) * self.element * places
        dora = max(
            (one.d_in * (one.d_in + 3 * one.d_out) for one in layer.linears if one.dora), default=0
        )
        return max(plain, dora * _FLOAT32 + layer.hidden * self.element * places)

    def _reference(self, layer: DecoderLayer, rows: int, tokens: int) -> int:
        """Return what a pass without gradients holds: two streams and three wide tensors."""
        inner = (2 * layer.hidden + 3 * layer.intermediate) * self.element * rows * tokens
        if self.attention == "eager":
            inner = max(inner, 2 * layer.heads * rows * tokens * tokens * _FLOAT32)
        return inner
