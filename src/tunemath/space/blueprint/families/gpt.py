"""GPT-2 and the decoders named after it: fused projections, learned positions, one MLP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tunemath.space.blueprint.families.draft import Draft, Family, Head, Unsupported, add_head
from tunemath.space.blueprint.families.fields import Fields
from tunemath.space.blueprint.record import Builder

__all__ = ["FAMILIES"]


@dataclass(frozen=True)
class Gpt:
    """Where a decoder's parts lie, what its configuration calls them, and what a layer holds."""

    layer: Callable[[Builder, Fields, int], None]
    hidden: str = "n_embd"
    layers: str = "n_layer"
    positions: str = ""
    """The field of the number of learned positions; empty where there are none."""
    stack: str = "h"
    embedding: str = "wte"
    embedding_norm: str = ""
    last: str = "ln_f"
    norm_bias: bool = True
    body: str = "transformer"
    heads: Mapping[str, Head] = field(default_factory=dict)
    """Heads that are not GPT-2's."""

    def __call__(self, f: Fields, ending: str) -> Draft:
        """Write the model down."""
        head = self._heads(ending)
        draft = Draft()
        b = draft.under(head.body)
        d = f.size(self.hidden)
        b.embedding(self.embedding, f.size("vocab_size"), d)
        draft.input = b.full(self.embedding)
        if self.embedding_norm:
            b.norm(self.embedding_norm, d, True)
        if self.positions:
            b.embedding("wpe", f.size(self.positions), d)
        for layer in range(f.count(self.layers)):
            self.layer(b.under(f"{self.stack}.{layer}"), f, d)
        b.norm(self.last, d, self.norm_bias)
        add_head(draft, f, head, d)
        if ending == "DoubleHeadsModel" and f.flag("summary_use_proj"):
            # Two choices are told apart by one number each.
            out = 1 if f.flag("summary_proj_to_labels") else d
            draft.linear("multiple_choice_head.summary", d, out, True)
        return draft

    def _heads(self, ending: str) -> Head:
        body = self.body
        lm = Head(body, "lm_head", "vocab")
        heads = {
            "Model": Head(""),
            "LMHeadModel": lm,
            "DoubleHeadsModel": lm,
            "ForCausalLM": lm,
            "ForSequenceClassification": Head(body, "score", "labels"),
            "ForTokenClassification": Head(body, "classifier", "labels", True),
            "ForQuestionAnswering": Head(body, "qa_outputs", 2, True),
            **self.heads,
        }
        if ending not in heads:
            raise Unsupported(ending)
        return heads[ending]


def _gpt2(b: Builder, f: Fields, d: int) -> None:
    f.split("n_embd", "n_head")
    inner = f.size_or("n_inner", 4 * d)
    b.norm("ln_1", d, True)
    b.conv1d("attn.c_attn", d, 3 * d)
    b.conv1d("attn.c_proj", d, d)
    b.norm("ln_2", d, True)
    if f.flag("add_cross_attention"):
        b.conv1d("crossattention.c_attn", d, 2 * d)
        b.conv1d("crossattention.q_attn", d, d)
        b.conv1d("crossattention.c_proj", d, d)
        b.norm("ln_cross_attn", d, True)
    b.conv1d("mlp.c_fc", d, inner)
    b.conv1d("mlp.c_proj", inner, d)


def _bigcode(b: Builder, f: Fields, d: int) -> None:
    if f.flag("add_cross_attention"):
        raise Unsupported("add_cross_attention")
    head = f.split("n_embd", "n_head")
    inner = f.size_or("n_inner", 4 * d)
    b.norm("ln_1", d, True)
    b.linear("attn.c_attn", d, d + 2 * (head if f.flag("multi_query") else d), True)
    b.linear("attn.c_proj", d, d, True)
    b.norm("ln_2", d, True)
    b.linear("mlp.c_fc", d, inner, True)
    b.linear("mlp.c_proj", inner, d, True)


def _neo(b: Builder, f: Fields, d: int) -> None:
    f.split("hidden_size", "num_heads")
    inner = f.size_or("intermediate_size", 4 * d)
    b.norm("ln_1", d, True)
    for name in ("k_proj", "v_proj", "q_proj"):
        b.linear(f"attn.attention.{name}", d, d)
    b.linear("attn.attention.out_proj", d, d, True)
    b.norm("ln_2", d, True)
    b.linear("mlp.c_fc", d, inner, True)
    b.linear("mlp.c_proj", inner, d, True)


def _gptj(b: Builder, f: Fields, d: int) -> None:
    f.split("n_embd", "n_head")
    b.norm("ln_1", d, True)
    for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
        b.linear(f"attn.{name}", d, d)
    _parallel_mlp(b, f, d)


def _codegen(b: Builder, f: Fields, d: int) -> None:
    f.split("n_embd", "n_head")
    b.norm("ln_1", d, True)
    b.linear("attn.qkv_proj", d, 3 * d)
    b.linear("attn.out_proj", d, d)
    _parallel_mlp(b, f, d)


def _parallel_mlp(b: Builder, f: Fields, d: int) -> None:
    inner = f.size_or("n_inner", 4 * d)
    b.linear("mlp.fc_in", d, inner, True)
    b.linear("mlp.fc_out", inner, d, True)


def _neox(b: Builder, f: Fields, d: int) -> None:
    f.split("hidden_size", "num_attention_heads")
    inner, bias = f.size("intermediate_size"), f.flag("attention_bias")
    b.norm("input_layernorm", d, True)
    b.norm("post_attention_layernorm", d, True)
    b.linear("attention.query_key_value", d, 3 * d, bias)
    b.linear("attention.dense", d, d, bias)
    b.linear("mlp.dense_h_to_4h", d, inner, True)
    b.linear("mlp.dense_4h_to_h", inner, d, True)


def _bloom(b: Builder, f: Fields, d: int) -> None:
    f.split("hidden_size", "n_head")
    b.norm("input_layernorm", d, True)
    b.linear("self_attention.query_key_value", d, 3 * d, True)
    b.linear("self_attention.dense", d, d, True)
    b.norm("post_attention_layernorm", d, True)
    b.linear("mlp.dense_h_to_4h", d, 4 * d, True)
    b.linear("mlp.dense_4h_to_h", 4 * d, d, True)


def _falcon(b: Builder, f: Fields, d: int) -> None:
    head = f.split("hidden_size", "num_attention_heads")
    inner, bias = f.size("ffn_hidden_size"), f.flag("bias")
    new = f.flag("new_decoder_architecture")
    if new:
        f.split("num_attention_heads", "num_kv_heads")
        rows = (2 * f.size("num_kv_heads") + f.size("num_attention_heads")) * head
    else:
        rows = d + 2 * (head if f.flag("multi_query") else d)
    b.linear("self_attention.query_key_value", d, rows, bias)
    b.linear("self_attention.dense", d, d, bias)
    b.linear("mlp.dense_h_to_4h", d, inner, bias)
    b.linear("mlp.dense_4h_to_h", inner, d, bias)
    if not f.flag("parallel_attn"):
        norms = ("post_attention_layernorm", "input_layernorm")
    elif f.size_or("num_ln_in_parallel_attn", 1) == 2:
        norms = ("ln_attn", "ln_mlp")
    else:
        norms = ("input_layernorm",)
    for name in norms:
        b.norm(name, d, True)


def _mpt(b: Builder, f: Fields, d: int) -> None:
    f.split("d_model", "n_heads")
    b.norm("norm_1", d)
    b.linear("attn.Wqkv", d, 3 * d)
    b.linear("attn.out_proj", d, d)
    b.norm("norm_2", d)
    b.linear("ffn.up_proj", d, 4 * d)
    b.linear("ffn.down_proj", 4 * d, d)


def _settle_bigcode(values: dict[str, Any]) -> None:
    values["num_key_value_heads"] = 1 if values.get("multi_query") else values.get("n_head")


def _settle_bloom(values: dict[str, Any]) -> None:
    width = values.pop("n_embed", None)
    if width is not None:
        values["hidden_size"] = width


def _settle_falcon(values: dict[str, Any]) -> None:
    _settle_bloom(values)
    if values.get("num_ln_in_parallel_attn") is None and values.get("new_decoder_architecture"):
        values["num_ln_in_parallel_attn"] = 2
    if values.get("num_kv_heads") is None:
        values["num_kv_heads"] = values.get("num_attention_heads")
    if values.get("ffn_hidden_size") is None and type(values.get("hidden_size")) is int:
        values["ffn_hidden_size"] = 4 * values["hidden_size"]


_BIASED = {"ForCausalLM": Head("transformer", "lm_head", "vocab", True)}
_BY_LABELS = {"ForQuestionAnswering": Head("transformer", "qa_outputs", "labels", True)}

FAMILIES = {
    "gpt2": Family("GPT2", Gpt(_gpt2, positions="n_positions")),
    "gpt_bigcode": Family("GPTBigCode", Gpt(_bigcode, positions="n_positions"), _settle_bigcode),
    "gpt_neo": Family(
        "GPTNeo", Gpt(_neo, "hidden_size", "num_layers", positions="max_position_embeddings")
    ),
    "gptj": Family("GPTJ", Gpt(_gptj, heads={**_BIASED, **_BY_LABELS})),
    "codegen": Family("CodeGen", Gpt(_codegen, heads=_BIASED)),
    "gpt_neox": Family(
        "GPTNeoX",
        Gpt(
            _neox,
            "hidden_size",
            "num_hidden_layers",
            stack="layers",
            embedding="embed_in",
            last="final_layer_norm",
            body="gpt_neox",
        ),
    ),
    "bloom": Family(
        "Bloom",
        Gpt(
            _bloom,
            "hidden_size",
            embedding="word_embeddings",
            embedding_norm="word_embeddings_layernorm",
        ),
        _settle_bloom,
    ),
    "falcon": Family(
        "Falcon",
        Gpt(_falcon, "hidden_size", "num_hidden_layers", embedding="word_embeddings"),
        _settle_falcon,
    ),
    "mpt": Family(
        "Mpt",
        Gpt(_mpt, "d_model", "n_layers", stack="blocks", last="norm_f", norm_bias=False),
    ),
}
