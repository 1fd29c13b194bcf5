"""DeBERTa, both versions: attention that tells content from position."""

from __future__ import annotations

from typing import Any

from tunemath.space.blueprint.families.bert import add_prediction_head, add_simple_head
from tunemath.space.blueprint.families.draft import Draft, Family
from tunemath.space.blueprint.families.fields import Fields
from tunemath.space.blueprint.record import Builder

__all__ = ["FAMILIES"]


def _v1_attention(b: Builder, f: Fields) -> None:
    """Add the first version's: one projection, biases of queries and values held apart."""
    d, heads = f.size("hidden_size"), f.size("num_attention_heads")
    b.own("", q_bias=(d,), v_bias=(d,))
    b.linear("in_proj", d, 3 * d)
    if f.flag("talking_head"):
        b.linear("head_logits_proj", heads, heads)
        b.linear("head_weights_proj", heads, heads)
    if f.flag("relative_attention"):
        kinds = f.strings("pos_att_type")
        if "c2p" in kinds:
            b.linear("pos_proj", d, d)
        if "p2c" in kinds:
            b.linear("pos_q_proj", d, d, True)


def _v2_attention(b: Builder, f: Fields) -> None:
    """Add the second version's, whose positions may use the keys' and queries' projections."""
    d = f.size("hidden_size")
    inner = d
    if f.has("attention_head_size"):
        inner = f.size("num_attention_heads") * f.size("attention_head_size")
    for name in ("query_proj", "key_proj", "value_proj"):
        b.linear(name, d, inner, True)
    if f.flag("relative_attention") and not f.flag("share_att_key"):
        kinds = f.strings("pos_att_type")
        if "c2p" in kinds:
            b.linear("pos_key_proj", d, inner, True)
        if "p2c" in kinds:
            b.linear("pos_query_proj", d, inner, True)


class _Deberta:
    """The modules of a DeBERTa of either version."""

    def __init__(self, second: bool) -> None:
        self.second = second

    def __call__(self, f: Fields, ending: str) -> Draft:
        """Write the model down."""
        f.split("hidden_size", "num_attention_heads")
        draft = Draft()
        body = draft.under("" if ending == "Model" else "deberta")
        draft.input = body.full("embeddings.word_embeddings")
        self._embeddings(body.under("embeddings"), f)
        self._encoder(body.under("encoder"), f)
        self._head(draft, f, ending)
        return draft

    @staticmethod
    def _embeddings(b: Builder, f: Fields) -> None:
        d = f.size("hidden_size")
        width = f.size_or("embedding_size", d)
        b.embedding("word_embeddings", f.size("vocab_size"), width)
        if f.values.get("position_biased_input") is not False:
            b.embedding("position_embeddings", f.size("max_position_embeddings"), width)
        if f.size("type_vocab_size", least=0):
            b.embedding("token_type_embeddings", f.size("type_vocab_size"), width)
        if width != d:
            b.linear("embed_proj", width, d)
        b.norm("LayerNorm", d, True)

    def _encoder(self, b: Builder, f: Fields) -> None:
        d, inner = f.size("hidden_size"), f.size("intermediate_size")
        for layer in range(f.count("num_hidden_layers")):
            block = b.under(f"layer.{layer}")
            (_v2_attention if self.second else _v1_attention)(block.under("attention.self"), f)
            block.linear("attention.output.dense", d, d, True)
            block.norm("attention.output.LayerNorm", d, True)
            block.linear("intermediate.dense", d, inner, True)
            block.linear("output.dense", inner, d, True)
            block.norm("output.LayerNorm", d, True)
        if f.flag("relative_attention"):
            b.embedding("rel_embeddings", 2 * self._distances(f), d)
        if self.second:
            kinds = f.text("norm_rel_ebd").lower().split("|")
            if "layer_norm" in (kind.strip() for kind in kinds):
                b.norm("LayerNorm", d, True)
            if f.has("conv_kernel_size") and f.size("conv_kernel_size", least=0):
                per_group, groups = self._grouped(f)
                b.conv("conv.conv", d, per_group, f.size("conv_kernel_size"), groups=groups)
                b.norm("conv.LayerNorm", d, True)

    def _distances(self, f: Fields) -> int:
        """Return how many relative positions have an embedding, to one side."""
        keys = (
            ("position_buckets", "max_relative_positions")
            if self.second
            else ("max_relative_positions",)
        )
        for key in keys:
            if f.has(key) and f.size(key, least=-(2**63)) > 0:
                return f.size(key)
        return f.size("max_position_embeddings")

    @staticmethod
    def _grouped(f: Fields) -> tuple[int, int]:
        """Return the inputs of a group of channels, and the number of groups."""
        if f.has("conv_groups"):
            return f.split("hidden_size", "conv_groups"), f.size("conv_groups")
        return f.size("hidden_size"), 1

    @staticmethod
    def _head(draft: Draft, f: Fields, ending: str) -> None:
        d, vocab = f.size("hidden_size"), f.size("vocab_size")
        if ending == "ForMaskedLM":
            if f.values.get("legacy") is not False:
                add_prediction_head(draft, f, f.size_or("embedding_size", d))
                return
            draft.own("lm_predictions.lm_head", bias=(vocab,))
            draft.linear("lm_predictions.lm_head.dense", d, d, True)
            draft.norm("lm_predictions.lm_head.LayerNorm", d, True)
            draft.output = "lm_predictions.lm_head.dense"
            return
        if ending in ("ForSequenceClassification", "ForMultipleChoice"):
            width = f.size("pooler_hidden_size")
            draft.linear("pooler.dense", width, width, True)
            out = 1 if ending == "ForMultipleChoice" else f.labels
            draft.linear("classifier", d, out, True)
            return
        add_simple_head(draft, f, ending)


def _settle(values: dict[str, Any]) -> None:
    kinds = values.get("pos_att_type")
    if isinstance(kinds, str):
        values["pos_att_type"] = [kind.strip() for kind in kinds.lower().split("|")]
    values.setdefault("pooler_hidden_size", values.get("hidden_size"))


FAMILIES = {
    "deberta": Family("Deberta", _Deberta(second=False), _settle),
    "deberta-v2": Family("DebertaV2", _Deberta(second=True), _settle),
}
