"""What a decoder keeps for the backward pass, from its shapes alone.

A tensor is kept by the operation whose gradient needs it: a norm and a non-linearity keep their
input, a product of two tensors both, fused attention its three inputs and its output. A linear
layer keeps its input only where its own weight is trained, or a low-rank update of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Literal

from tunemath.budget.passes import Passes

__all__ = [
    "MIXINGS",
    "Attention",
    "Decoder",
    "DecoderLayer",
    "Linear",
    "Mixing",
    "Numbers",
]

Attention = Literal["fused", "eager"]
"""``fused``: torch's scaled dot product or flash attention. ``eager``: all T × T scores."""

Mixing = Literal["autocast", "plain", "pure"]
"""How half precision is used. ``autocast``: what is trained is float32, products are cast, as by
the Trainer's ``bf16``. ``plain``: what is added is float32 and nothing is cast but by PEFT itself.
``pure``: what is trained, its gradients and its optimizer's state are in half precision too."""
MIXINGS: tuple[Mixing, ...] = ("autocast", "plain", "pure")

_FLOAT32 = 4


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
    stores: bool = False
    """Whether it keeps its input though it is frozen, as bitsandbytes' 8-bit layers do."""

    @property
    def keeps_input(self) -> bool:
        """Whether its gradient needs its input."""
        return self.trained or self.rank > 0

    @property
    def touched(self) -> bool:
        """Whether its output has a gradient though its input has none."""
        return self.keeps_input or self.bias_trained


@dataclass(frozen=True)
class Numbers:
    """Bytes of a number, by what it is; all four in float32.

    >>> Numbers.of(2, "plain").factors, Numbers.of(2, "autocast", stream=4).attention
    (4, 2)
    """

    products: int = _FLOAT32
    """e, of what linear layers give."""
    stream: int = _FLOAT32
    """s, of the residual stream: the embedding's, and of what is computed from it elementwise."""
    factors: int = _FLOAT32
    """a, of what a low-rank update's products read: the copies of its input, its inner tensor."""
    attention: int = _FLOAT32
    """t, of queries, keys, values and what attention returns."""
    trained: int = _FLOAT32
    """w, of a trained weight."""
    casts: bool = False
    """Whether each low-rank update has a copy of its input of its own, though it is as wide."""

    @classmethod
    def of(
        cls, element: int, mixing: Mixing, *, stream: int | None = None, quantised: bool = False
    ) -> Numbers:
        """Return those of a dtype of ``element`` bytes under a ``mixing``.

        PEFT casts an input to its factors' float32, which autocast then casts back: a copy for each
        update. bitsandbytes' 4-bit layers compute in the half precision and give what they are
        given, and PEFT's updates of them leave the cast to autocast.
        """
        s = element if stream is None else stream
        trained = element if mixing == "pure" else _FLOAT32
        auto = mixing == "autocast"
        products = s if quantised else element
        return cls(
            products=products,
            stream=s,
            factors=element if auto else trained,
            attention=element if auto else max(products, s),
            trained=trained,
            casts=auto and element != _FLOAT32 and not quantised,
        )


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
    gated: bool = True
    """Whether the feed-forward module has a gate beside its way up."""
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
    copies: int = 0
    """Bytes of weights that the backward pass needs beside those held: autocast's of float32 ones,
    and those that a method makes."""
    more: int = 0
    """Bytes a token that a method keeps besides."""
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

    Valid for families whose norms, rotary embeddings and gates are Llama's; right-padded rows need
    no mask. The small tensors of a step (positions, rotary angles, norms' scales) are left out.
    """

    layers: tuple[DecoderLayer, ...]
    numbers: Numbers = Numbers()
    attention: Attention = "fused"
    masked: bool = False
    """Whether attention has a mask, which takes T² numbers a row and repeats keys and values."""
    checkpointing: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    """Where dropout's masks lie: numbers on a CPU, bytes on a GPU."""
    prompt: int = 0
    """P, virtual tokens before the input."""
    prompt_in_rows: bool = False
    """Whether each row has them, as in PEFT; else the layers read them once for all rows."""
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
        if self.prompt_in_rows:
            tokens += self.prompt
        places = rows * tokens
        d = self.layers[-1].hidden
        kept = [(layer, count, self._held(layer, rows, tokens)) for layer, count in self._alike]
        held = left = sum(count * one for _, count, one in kept)
        final = (_FLOAT32 + self.numbers.stream * self.final_norm_trained) * d * places
        arrived = self.first_gradients if fresh else 0
        peaks = [(left + arrived + self._norm_backward(d, places), arrived)]
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
        peaks.append((arrived + self.last_scratch + d * self.numbers.stream * places, arrived))
        backward, gradients = max(peaks)
        forward = held + max(self._forward(layer, places) for layer, _ in self._alike)
        reference = max(self._reference(layer, rows, tokens) for layer, _ in self._alike)
        if self.checkpointing:  # a layer runs without keeping; autocast's copies stay to its end
            forward = held + reference + sum(layer.copies for layer in self.layers)
        return Passes(
            kept=held + final,
            backward=backward,
            gradients=gradients,
            forward=max(forward, held + final),
            reference=reference,
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
        n, d, inner = self.numbers, layer.hidden, layer.intermediate
        query, narrow = layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
        e, t, read = n.products, n.attention, self._read(layer)
        norm = d * (_FLOAT32 + n.stream * layer.norms_trained) + _FLOAT32
        live = layer.upstream or layer.norms_trained
        numbers = norm if live else 0
        numbers += self._inputs(layer.attention, d, read)
        live = live or bool(layer.prefix) or any(one.touched for one in layer.attention)
        if layer.qk_norm and live:
            numbers += (_FLOAT32 + e * layer.norms_trained) * (query + narrow)
        whole = layer.copies
        read_on = self._inputs((layer.output,), query, t)
        if live:
            # Queries, and what attention returns: kept by the fused one, else by what reads it.
            numbers += query * t + (read_on if self.attention == "eager" else query * t)
            if len(layer.attention) == 1 and e == t:
                # Values are a part of one tensor, kept whole; what attention returns is copied.
                numbers += (query + narrow) * e + read_on * (self.attention != "eager")
            whole += self._keys(layer, rows, tokens + layer.prefix)
            whole += self._scores(layer, rows, tokens)
        else:
            numbers += read_on
        live = live or layer.output.touched
        if layer.after_attention:
            numbers += (d + layer.after_attention) * n.factors
            live = True
        numbers += norm if live else 0
        numbers += self._inputs(layer.feed, d, read)
        live = live or any(one.touched for one in layer.feed)
        numbers += (3 if layer.gated else 2) * inner * e * live  # gate, its activation, up
        numbers += self._inputs((layer.down,), inner, e)
        if layer.after_feed:
            numbers += (d + layer.after_feed) * n.factors
        given = (*(read for _ in layer.attention), t, *(read for _ in layer.feed), e)
        numbers += sum(map(self._own, layer.linears, given))
        return (numbers + layer.more) * rows * tokens + whole

    def _read(self, layer: DecoderLayer) -> int:
        """Return the bytes of a number of what a norm gives: a float32 scale makes it float32."""
        n = self.numbers
        return max(n.stream, n.trained) if layer.norms_trained else n.stream

    def _inputs(self, group: Sequence[Linear], d: int, given: int) -> int:
        """Return the bytes a token of the input of some linear layers, of ``given`` bytes a number.

        Those whose weight is trained, and those whose update reads it as it is, keep it together;
        where autocast casts it, each product has a copy of its own.
        """
        trained = sum(one.trained for one in group)
        if trained and given != self.numbers.factors:
            return trained * d * self.numbers.factors
        shared = any(one.rank and not self._copies(one, given) for one in group)
        return d * given if trained or shared or any(one.stores for one in group) else 0

    def _copies(self, one: Linear, given: int) -> bool:
        """Whether an update has its own copy of an input of ``given`` bytes a number."""
        return one.dropout or self.numbers.casts or given != self.numbers.factors

    def _own(self, one: Linear, given: int) -> int:
        """Return the bytes a token that a linear layer's update alone keeps."""
        n = self.numbers
        if not one.rank:
            return 0
        kept = one.rank * n.factors
        if one.dora:  # what the base gives, and what the update does
            kept += one.d_out * (n.products + n.factors)
        if self._copies(one, given):
            kept += one.d_in * n.factors
        if one.dropout:
            kept += one.d_in * (1 if self.device == "cuda" else n.trained)
        return kept

    def _keys(self, layer: DecoderLayer, rows: int, places: int) -> int:
        """Return the bytes of a layer's keys and values, repeated for every query head or not."""
        repeated = self.masked or layer.prefix or self.attention == "eager"
        heads = layer.heads if repeated else layer.kv_heads
        return 2 * heads * layer.head_dim * self.numbers.attention * rows * places

    def _scores(self, layer: DecoderLayer, rows: int, tokens: int) -> int:
        t = self.numbers.attention
        pairs = rows * tokens * (tokens + layer.prefix)
        if self.attention == "eager":  # the softmax in float32, and what multiplies the values
            return layer.heads * pairs * (_FLOAT32 + (t if t != _FLOAT32 else 0))
        mask = pairs * t if self.masked else 0
        if layer.prefix and not self.masked:
            mask = pairs // rows * t
        return mask + layer.heads * _FLOAT32 * rows * tokens  # and the log-sum of each row

    def _held(self, layer: DecoderLayer, rows: int, tokens: int) -> int:
        """Return what is held of a layer until its backward pass: with checkpointing, its input."""
        if not layer.live:
            return 0
        once = self.prompt and not self.prompt_in_rows
        prompt = self.kept(layer, 1, self.prompt) - layer.copies if once else 0
        if self.checkpointing:
            return layer.hidden * self.numbers.stream * rows * tokens + prompt
        return self.kept(layer, rows, tokens) + prompt

    def _backward(self, layer: DecoderLayer, rows: int, tokens: int) -> int:
        """Return the working space of a layer's backward pass, above what is held of it.

        The most is needed at the feed-forward module's product: the residual's gradient, the
        product's, and those of both factors, while the product itself is freed if it was kept. An
        update's gradient of that product is cast, and added to the base's.
        """
        places, n = rows * tokens, self.numbers
        inner = 2 if layer.down.keeps_input and not layer.down.dropout else 3
        weight = layer.down.d_in * layer.down.d_out * n.trained if layer.down.trained else 0
        work = (layer.hidden * n.stream + inner * layer.intermediate * n.products) * places
        work = max(work + weight, self._norm_backward(layer.hidden, places))
        if not self.checkpointing:
            return work
        again = self.kept(layer, rows, tokens) - self._held(layer, rows, tokens)
        arriving = layer.hidden * n.stream * places
        return again + max(work, arriving + self._forward(layer, places))

    def _norm_backward(self, d: int, places: int) -> int:
        """Return what a norm's backward pass needs: two gradients as it gets them, four float32."""
        return (2 * self.numbers.stream + 4 * _FLOAT32) * d * places * (self.numbers.stream < 4)

    def _forward(self, layer: DecoderLayer, places: int) -> int:
        """Return the working space of a layer's forward pass, above what it keeps."""
        n = self.numbers
        # An update of the down projection casts its input to float32 first.
        upcast = n.trained if layer.down.rank and n.trained != n.products else 0
        wide = layer.intermediate * (n.products + upcast)
        plain = (layer.hidden * n.stream + wide) * places
        dora = max(
            (one.d_in * (one.d_in + 3 * one.d_out) for one in layer.linears if one.dora), default=0
        )
        return max(plain, dora * n.trained + layer.hidden * n.stream * places)

    def _reference(self, layer: DecoderLayer, rows: int, tokens: int) -> int:
        """Return what a pass without gradients holds: two streams and three wide tensors."""
        n = self.numbers
        inner = 2 * layer.hidden * n.stream + 3 * layer.intermediate * n.products
        if self.attention == "eager":
            scores = 2 * layer.heads * rows * tokens * tokens * _FLOAT32
            return max(inner * rows * tokens, scores)
        return inner * rows * tokens
