"""ALBERT, DistilBERT and ModernBERT."""

from __future__ import annotations

from typing import Any

from tunemath.space.blueprint.families.bert import add_simple_head
from tunemath.space.blueprint.families.draft import Draft, Family, Head, Unsupported, add_head
from tunemath.space.blueprint.families.fields import Fields
from tunemath.space.blueprint.families.settle import settle_layers
from tunemath.space.blueprint.record import Builder

__all__ = ["FAMILIES"]


def _albert(f: Fields, ending: str) -> Draft:
    """Write an ALBERT down: groups of layers that are used again and again."""
    f.split("hidden_size", "num_attention_heads")
    draft = Draft()
    b = draft.under("" if ending == "Model" else "albert")
    d, width = f.size("hidden_size"), f.size("embedding_size")
    draft.input = b.full("embeddings.word_embeddings")
    b.embedding("embeddings.word_embeddings", f.size("vocab_size"), width)
    b.embedding("embeddings.position_embeddings", f.size("max_position_embeddings"), width)
    b.embedding("embeddings.token_type_embeddings", f.size("type_vocab_size"), width)
    b.norm("embeddings.LayerNorm", width, True)
    b.linear("encoder.embedding_hidden_mapping_in", width, d, True)
    for group in range(f.count("num_hidden_groups")):
        for layer in range(f.count("inner_group_num")):
            name = f"encoder.albert_layer_groups.{group}.albert_layers.{layer}"
            _albert_layer(b.under(name), f, d)
    pooled = ("Model", "ForPreTraining", "ForSequenceClassification", "ForMultipleChoice")
    if ending in pooled:
        b.linear("pooler", d, d, True)
    if ending in ("ForMaskedLM", "ForPreTraining"):
        _albert_predictions(draft, f, width)
    if ending == "ForPreTraining":
        draft.linear("sop_classifier.classifier", d, f.labels, True)
    elif ending == "ForSequenceClassification":
        draft.linear("classifier", d, f.labels, True)
    elif ending != "ForMaskedLM":
        add_simple_head(draft, f, ending)
    return draft


def _albert_layer(b: Builder, f: Fields, d: int) -> None:
    inner = f.size("intermediate_size")
    b.norm("full_layer_layer_norm", d, True)
    for name in ("query", "key", "value", "dense"):
        b.linear(f"attention.{name}", d, d, True)
    b.norm("attention.LayerNorm", d, True)
    b.linear("ffn", d, inner, True)
    b.linear("ffn_output", inner, d, True)


def _albert_predictions(draft: Draft, f: Fields, width: int) -> None:
    d, vocab = f.size("hidden_size"), f.size("vocab_size")
    draft.own("predictions", bias=(vocab,))
    draft.norm("predictions.LayerNorm", width, True)
    draft.linear("predictions.dense", d, width, True)
    draft.linear("predictions.decoder", width, vocab, True)
    draft.output = "predictions.decoder"
    if f.flag("tie_word_embeddings"):
        draft.tie(f"{draft.input}.weight", "predictions.decoder.weight")
        draft.tie("predictions.bias", "predictions.decoder.bias")


def _distilbert(f: Fields, ending: str) -> Draft:
    """Write a DistilBERT down."""
    f.split("dim", "n_heads")
    draft = Draft()
    b = draft.under("" if ending == "Model" else "distilbert")
    d = f.size("dim")
    draft.input = b.full("embeddings.word_embeddings")
    b.embedding("embeddings.word_embeddings", f.size("vocab_size"), d)
    b.embedding("embeddings.position_embeddings", f.size("max_position_embeddings"), d)
    b.norm("embeddings.LayerNorm", d, True)
    for layer in range(f.count("n_layers")):
        _distilbert_layer(b.under(f"transformer.layer.{layer}"), f, d)
    heads = {
        "Model": Head(""),
        "ForMaskedLM": Head("", "vocab_projector", "vocab", True),
        "ForSequenceClassification": Head("", "classifier", "labels", True),
        "ForMultipleChoice": Head("", "classifier", 1, True),
        "ForTokenClassification": Head("", "classifier", "labels", True),
        "ForQuestionAnswering": Head("", "qa_outputs", "labels", True),
    }
    if ending not in heads:
        raise Unsupported(ending)
    if ending == "ForQuestionAnswering" and f.labels != 2:
        raise f.wrong("id2label", "2 classes, a start and an end, as question answering has")
    if ending == "ForMaskedLM":
        draft.linear("vocab_transform", d, d, True)
        draft.norm("vocab_layer_norm", d, True)
    if ending in ("ForSequenceClassification", "ForMultipleChoice"):
        draft.linear("pre_classifier", d, d, True)
    add_head(draft, f, heads[ending], d)
    return draft


def _distilbert_layer(b: Builder, f: Fields, d: int) -> None:
    inner = f.size("hidden_dim")
    for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
        b.linear(f"attention.{name}", d, d, True)
    b.norm("sa_layer_norm", d, True)
    b.linear("ffn.lin1", d, inner, True)
    b.linear("ffn.lin2", inner, d, True)
    b.norm("output_layer_norm", d, True)


def _modernbert(f: Fields, ending: str) -> Draft:
    """Write a ModernBERT down: a pre-norm encoder with fused projections."""
    f.split("hidden_size", "num_attention_heads")
    heads = {
        "Model": Head(""),
        "ForMaskedLM": Head("model", "decoder", "vocab", f.flag("decoder_bias")),
        "ForSequenceClassification": Head("model", "classifier", "labels", True),
        "ForTokenClassification": Head("model", "classifier", "labels", True),
        "ForQuestionAnswering": Head("model", "classifier", "labels", True),
        "ForMultipleChoice": Head("model", "classifier", 1, True),
    }
    if ending not in heads:
        raise Unsupported(ending)
    draft = Draft()
    b = draft.under(heads[ending].body)
    d, bias = f.size("hidden_size"), f.flag("norm_bias")
    b.embedding("embeddings.tok_embeddings", f.size("vocab_size"), d)
    draft.input = b.full("embeddings.tok_embeddings")
    b.norm("embeddings.norm", d, bias)
    for layer in range(f.count("num_hidden_layers")):
        inner = b.under(f"layers.{layer}")
        if layer:  # the embeddings have been normed just before the first
            inner.norm("attn_norm", d, bias)
        _modernbert_layer(inner, f, d)
    b.norm("final_norm", d, bias)
    if ending != "Model":
        draft.linear("head.dense", d, d, f.flag("classifier_bias"))
        draft.norm("head.norm", d, bias)
    add_head(draft, f, heads[ending], d)
    return draft


def _modernbert_layer(b: Builder, f: Fields, d: int) -> None:
    inner, bias = f.size("intermediate_size"), f.flag("attention_bias")
    b.linear("attn.Wqkv", d, 3 * d, bias)
    b.linear("attn.Wo", d, d, bias)
    b.norm("mlp_norm", d, f.flag("norm_bias"))
    b.linear("mlp.Wi", d, 2 * inner, f.flag("mlp_bias"))
    b.linear("mlp.Wo", inner, d, f.flag("mlp_bias"))


def _settle_modernbert(values: dict[str, Any]) -> None:
    every = values.get("global_attn_every_n_layers", 3)
    if type(every) is int and every > 0:
        kinds = ("full_attention", "sliding_attention")
        settle_layers(values, lambda layer: kinds[bool(layer % every)])


FAMILIES = {
    "albert": Family("Albert", _albert),
    "distilbert": Family("DistilBert", _distilbert),
    "modernbert": Family("ModernBert", _modernbert, _settle_modernbert),
}
