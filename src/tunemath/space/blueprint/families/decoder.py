"""The decoder that most families are: one attention and one feed-forward block a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tunemath.space.blueprint.families.draft import Draft, Head, Unsupported, add_head
from tunemath.space.blueprint.families.fields import Fields
from tunemath.space.blueprint.record import Builder

__all__ = ["NORMS", "Attention", "Decoder", "Gated", "Plain", "head_dim", "heads_of"]

Flag = bool | str
"""True, false, or the field that says so."""


def _is(f: Fields, flag: Flag) -> bool:
    return f.flag(flag) if isinstance(flag, str) else flag


def head_dim(f: Fields) -> int:
    """Return the width of a head: its own field, else the hidden size shared out."""
    if not f.has("head_dim"):
        return f.split("hidden_size", "num_attention_heads")
    return f.size("head_dim")


@dataclass(frozen=True)
class Attention:
    """Query, key and value projections, an output projection, and norms of queries and keys."""

    bias: Flag = False
    """Of query, key and value."""
    out_bias: Flag = False
    out: str = "o_proj"
    fused: bool = False
    """One qkv_proj, after the output projection (Phi-3)."""
    norms: str = ""
    """Norms of queries and keys: ``head`` over a head, ``share`` over a head's share of the hidden
    size, ``all`` over all heads, ``heads`` a row of weights a head, ``each`` a module a head; with
    a bias if it ends in ``+``."""
    norms_if: Flag = True
    norm_names: tuple[str, str] = ("q_norm", "k_norm")
    own_head_dim: bool = True
    """Whether the field head_dim counts."""
    sinks: bool = False
    """A parameter a head of the block itself (gpt-oss)."""
    gate: bool = False
    """The query projection gives a gate as well (Qwen3-Next)."""

    def __call__(self, b: Builder, f: Fields) -> None:
        """Add the block."""
        d, heads, kv = f.size("hidden_size"), f.count("num_attention_heads"), heads_of(f)
        width = head_dim(f) if self.own_head_dim else f.split("hidden_size", "num_attention_heads")
        bias = _is(f, self.bias)
        if self.sinks:
            b.own("", sinks=(heads,))
        if not self.fused:
            b.linear("q_proj", d, heads * width * (2 if self.gate else 1), bias)
            b.linear("k_proj", d, kv * width, bias)
            b.linear("v_proj", d, kv * width, bias)
        b.linear(self.out, heads * width, d, _is(f, self.out_bias))
        if self.fused:
            b.linear("qkv_proj", d, (heads + 2 * kv) * width, bias)
        if self.norms and _is(f, self.norms_if):
            for name, count in zip(self.norm_names, (heads, kv), strict=True):
                self._norm(b, f, name, count, width)

    def _norm(self, b: Builder, f: Fields, name: str, count: int, width: int) -> None:
        kind, bias = self.norms.removesuffix("+"), self.norms.endswith("+")
        if kind == "head":
            b.norm(name, width, bias)
        elif kind == "share":
            b.norm(name, f.split("hidden_size", "num_attention_heads"), bias)
        elif kind == "all":
            b.norm(name, count * width, bias)
        elif kind == "heads":
            b.own(name, "norm", weight=(count, width))
        else:
            for head in range(count):
                b.norm(f"{name}.norms.{head}", width, bias)


def heads_of(f: Fields) -> int:
    """Return K, the number of key and value heads, which must divide the query heads."""
    if f.has("num_key_value_heads"):
        f.split("num_attention_heads", "num_key_value_heads")
        return f.count("num_key_value_heads")
    return f.count("num_attention_heads")


@dataclass(frozen=True)
class Gated:
    """A feed-forward block with a gate: down(act(gate(x)) · up(x))."""

    bias: Flag = False
    fused: bool = False
    """One gate_up_proj."""
    size: str = "intermediate_size"
    name: str = "mlp"

    def __call__(self, b: Builder, f: Fields, layer: int) -> None:
        """Add the block."""
        d, inner, bias = f.size("hidden_size"), f.size(self.size), _is(f, self.bias)
        b = b.under(self.name)
        if self.fused:
            b.linear("gate_up_proj", d, 2 * inner, bias)
        else:
            b.linear("gate_proj", d, inner, bias)
            b.linear("up_proj", d, inner, bias)
        b.linear("down_proj", inner, d, bias)


@dataclass(frozen=True)
class Plain:
    """A feed-forward block without a gate."""

    up: str
    down: str
    bias: Flag = False

    def __call__(self, b: Builder, f: Fields, layer: int) -> None:
        """Add the block."""
        d, inner, bias = f.size("hidden_size"), f.size("intermediate_size"), _is(f, self.bias)
        b.linear(f"mlp.{self.up}", d, inner, bias)
        b.linear(f"mlp.{self.down}", inner, d, bias)


NORMS = ("input_layernorm", "post_attention_layernorm")
"""The norms of Llama's layers."""


@dataclass(frozen=True)
class Decoder:
    """What sets a decoder apart from Llama."""

    attention: Callable[[Builder, Fields], None] = field(default_factory=Attention)
    feed_forward: Callable[[Builder, Fields, int], None] = field(default_factory=Gated)
    norms: tuple[str, ...] = NORMS
    norm_bias: Flag = False
    """Whether norms are LayerNorms with a bias."""
    norms_first: bool = False
    """Whether norms are registered before the feed-forward block."""
    no_norms: bool = False
    """The norms have no parameters (OLMo)."""
    parallel: Flag = False
    """Where set, there is no post_attention_layernorm."""
    mixer: Callable[[Builder, Fields, int], bool] | None = None
    """Adds what stands in a layer in place of attention, if anything does, and says so."""
    last: str = "norm"
    """The norm after the layers."""
    head_bias: Flag = False
    questions: str = "transformer"
    """The name that the base model lies under in question answering."""

    def __call__(self, f: Fields, ending: str) -> Draft:
        """Write the model down."""
        head = self._head(f, ending)
        draft = Draft()
        draft.input = self.base(draft.under(head.body), f)
        add_head(draft, f, head, f.size("hidden_size"))
        return draft

    def base(self, b: Builder, f: Fields) -> str:
        """Add the base model; return the name of its embedding."""
        d = f.size("hidden_size")
        b.embedding("embed_tokens", f.size("vocab_size"), d)
        for layer in range(f.count("num_hidden_layers")):
            self._layer(b.under(f"layers.{layer}"), f, layer)
        if not self.no_norms:
            b.norm(self.last, d, _is(f, self.norm_bias))
        return b.full("embed_tokens")

    def _layer(self, b: Builder, f: Fields, layer: int) -> None:
        if self.mixer is None or not self.mixer(b, f, layer):
            self.attention(b.under("self_attn"), f)
        if not self.norms_first:
            self.feed_forward(b, f, layer)
        if not self.no_norms:
            norms = self.norms[:1] if _is(f, self.parallel) else self.norms
            for name in norms:
                b.norm(name, f.size("hidden_size"), _is(f, self.norm_bias))
        if self.norms_first:
            self.feed_forward(b, f, layer)

    def _head(self, f: Fields, ending: str) -> Head:
        heads = {
            "Model": Head(""),
            "ForCausalLM": Head("model", "lm_head", "vocab", _is(f, self.head_bias)),
            "ForSequenceClassification": Head("model", "score", "labels"),
            "ForTokenClassification": Head("model", "score", "labels", True),
            "ForQuestionAnswering": Head(self.questions, "qa_outputs", 2, True),
        }
        if ending not in heads:
            raise Unsupported(ending)
        return heads[ending]
