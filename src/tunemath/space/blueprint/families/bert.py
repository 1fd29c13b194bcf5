"""BERT, RoBERTa and ELECTRA: post-norm encoders, with the heads that each puts on top."""

from __future__ import annotations

from dataclasses import dataclass

from tunemath.space.blueprint.families.draft import Draft, Family, Unsupported
from tunemath.space.blueprint.families.fields import Fields
from tunemath.space.blueprint.record import Builder

__all__ = ["FAMILIES", "add_encoder_layer", "add_prediction_head"]

_LANGUAGE = ("ForMaskedLM", "ForCausalLM", "LMHeadModel", "ForPreTraining")
_POOLED = ("Model", "ForMultipleChoice")


def add_encoder_layer(b: Builder, f: Fields) -> None:
    """Add BERT's layer, with attention to an encoder where it is a decoder of one."""
    d, inner = f.size("hidden_size"), f.size("intermediate_size")
    _attention(b.under("attention"), d)
    if f.flag("add_cross_attention"):
        _attention(b.under("crossattention"), d)
    b.linear("intermediate.dense", d, inner, True)
    b.linear("output.dense", inner, d, True)
    b.norm("output.LayerNorm", d, True)


def _attention(b: Builder, d: int) -> None:
    for name in ("query", "key", "value"):
        b.linear(f"self.{name}", d, d, True)
    b.linear("output.dense", d, d, True)
    b.norm("output.LayerNorm", d, True)


def add_prediction_head(draft: Draft, f: Fields, width: int) -> None:
    """Add BERT's masked-language head, whose outer bias is the decoder's."""
    b, d, vocab = draft.under("cls.predictions"), f.size("hidden_size"), f.size("vocab_size")
    b.own("", bias=(vocab,))
    b.linear("transform.dense", d, width, True)
    b.norm("transform.LayerNorm", width, True)
    b.linear("decoder", width, vocab, True)
    _tie_decoder(draft, f, "cls.predictions")


def _tie_decoder(draft: Draft, f: Fields, name: str) -> None:
    draft.output = f"{name}.decoder"
    if f.flag("tie_word_embeddings"):
        draft.tie(f"{draft.input}.weight", f"{name}.decoder.weight")
        draft.tie(f"{name}.bias", f"{name}.decoder.bias")


@dataclass(frozen=True)
class _Bert:
    """What sets an encoder apart from BERT."""

    body: str = "bert"
    head_first: bool = False
    """Whether heads are registered before the base model (XLM-R, CamemBERT)."""

    def __call__(self, f: Fields, ending: str) -> Draft:
        """Write the model down."""
        f.split("hidden_size", "num_attention_heads")
        draft = Draft()
        body = draft.under("" if ending == "Model" else self.body)
        draft.input = body.full("embeddings.word_embeddings")
        if self.head_first:
            self.head(draft, f, ending)
        self.base(body, f, ending)
        if not self.head_first:
            self.head(draft, f, ending)
        return draft

    def base(self, b: Builder, f: Fields, ending: str) -> None:
        """Add the base model, which some classes give a pooler."""
        d = f.size("hidden_size")
        self.embeddings(b.under("embeddings"), f, d)
        for layer in range(f.count("num_hidden_layers")):
            add_encoder_layer(b.under(f"encoder.layer.{layer}"), f)
        if self.pooled(ending):
            b.linear("pooler.dense", d, d, True)

    def pooled(self, ending: str) -> bool:
        """Whether a class's base model has a pooler."""
        more = ("ForSequenceClassification", "ForPreTraining", "ForNextSentencePrediction")
        return ending in (*_POOLED, *more)

    def embeddings(self, b: Builder, f: Fields, width: int) -> None:
        """Add the embeddings of tokens, positions and segments."""
        b.embedding("word_embeddings", f.size("vocab_size"), width)
        b.embedding("position_embeddings", f.size("max_position_embeddings"), width)
        b.embedding("token_type_embeddings", f.size("type_vocab_size"), width)
        b.norm("LayerNorm", width, True)

    def head(self, draft: Draft, f: Fields, ending: str) -> None:
        """Add what a class has on top."""
        d = f.size("hidden_size")
        if ending in _LANGUAGE:
            add_prediction_head(draft, f, d)
        if ending in ("ForPreTraining", "ForNextSentencePrediction"):
            draft.linear("cls.seq_relationship", d, 2, True)
        elif ending == "ForSequenceClassification":
            draft.linear("classifier", d, f.labels, True)
        elif ending not in _LANGUAGE:
            add_simple_head(draft, f, ending)


def add_simple_head(draft: Draft, f: Fields, ending: str) -> None:
    """Add the head of token classification, question answering or multiple choice."""
    d = f.size("hidden_size")
    if ending == "ForTokenClassification":
        draft.linear("classifier", d, f.labels, True)
    elif ending == "ForQuestionAnswering":
        draft.linear("qa_outputs", d, f.labels, True)
    elif ending == "ForMultipleChoice":
        draft.linear("classifier", d, 1, True)
    elif ending != "Model":
        raise Unsupported(ending)


def _add_two_layers(draft: Draft, f: Fields) -> None:
    d = f.size("hidden_size")
    draft.linear("classifier.dense", d, d, True)
    draft.linear("classifier.out_proj", d, f.labels, True)


@dataclass(frozen=True)
class _Roberta(_Bert):
    """RoBERTa: positions come last, heads are its own, and classifiers need no pooler."""

    body: str = "roberta"

    def pooled(self, ending: str) -> bool:
        """Whether a class's base model has a pooler."""
        return ending in _POOLED

    def embeddings(self, b: Builder, f: Fields, width: int) -> None:
        """Add the embeddings of tokens, segments and positions."""
        b.embedding("word_embeddings", f.size("vocab_size"), width)
        b.embedding("token_type_embeddings", f.size("type_vocab_size"), width)
        b.norm("LayerNorm", width, True)
        b.embedding("position_embeddings", f.size("max_position_embeddings"), width)

    def head(self, draft: Draft, f: Fields, ending: str) -> None:
        """Add what a class has on top."""
        d, vocab = f.size("hidden_size"), f.size("vocab_size")
        if ending in ("ForMaskedLM", "ForCausalLM"):
            draft.own("lm_head", bias=(vocab,))
            draft.linear("lm_head.dense", d, d, True)
            draft.norm("lm_head.layer_norm", d, True)
            draft.linear("lm_head.decoder", d, vocab, True)
            _tie_decoder(draft, f, "lm_head")
            if self.head_first and f.flag("tie_word_embeddings"):
                # Of parameters that are one, the name that comes first in the model stands.
                del draft.tied["lm_head.decoder.weight"]
                draft.tie("lm_head.decoder.weight", f"{draft.input}.weight")
        elif ending == "ForSequenceClassification":
            _add_two_layers(draft, f)
        else:
            add_simple_head(draft, f, ending)


@dataclass(frozen=True)
class _Electra(_Bert):
    """ELECTRA: embeddings may be narrower than layers; a generator's and a discriminator's head."""

    body: str = "electra"

    def base(self, b: Builder, f: Fields, ending: str) -> None:
        """Add the base model, which never has a pooler."""
        d, width = f.size("hidden_size"), f.size("embedding_size")
        self.embeddings(b.under("embeddings"), f, width)
        if width != d:
            b.linear("embeddings_project", width, d, True)
        for layer in range(f.count("num_hidden_layers")):
            add_encoder_layer(b.under(f"encoder.layer.{layer}"), f)

    def head(self, draft: Draft, f: Fields, ending: str) -> None:
        """Add what a class has on top."""
        d, width = f.size("hidden_size"), f.size("embedding_size")
        if ending in ("ForMaskedLM", "ForCausalLM"):
            draft.norm("generator_predictions.LayerNorm", width, True)
            draft.linear("generator_predictions.dense", d, width, True)
            draft.linear("generator_lm_head", width, f.size("vocab_size"), True)
            draft.output = "generator_lm_head"
            if f.flag("tie_word_embeddings"):
                draft.tie(f"{draft.input}.weight", "generator_lm_head.weight")
        elif ending == "ForPreTraining":
            draft.linear("discriminator_predictions.dense", d, d, True)
            draft.linear("discriminator_predictions.dense_prediction", d, 1, True)
        elif ending == "ForSequenceClassification":
            _add_two_layers(draft, f)
        else:
            if ending == "ForMultipleChoice" and f.flag("summary_use_proj"):
                to_labels = f.flag("summary_proj_to_labels") and f.labels > 0
                draft.linear("sequence_summary.summary", d, f.labels if to_labels else d, True)
            add_simple_head(draft, f, ending)


FAMILIES = {
    "bert": Family("Bert", _Bert()),
    "roberta": Family("Roberta", _Roberta()),
    "xlm-roberta": Family("XLMRoberta", _Roberta(head_first=True)),
    "camembert": Family("Camembert", _Roberta(head_first=True)),
    "electra": Family("Electra", _Electra()),
}
