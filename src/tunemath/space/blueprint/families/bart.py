"""BART and its kin, Whisper and OPT: attention with biases everywhere, named by fairseq."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunemath.space.blueprint.families.draft import Draft, Family, Head, Unsupported, add_head
from tunemath.space.blueprint.families.fields import Fields
from tunemath.space.blueprint.record import Builder

__all__ = ["FAMILIES"]


def _attention(b: Builder, d: int, bias: bool = True, key_bias: bool = True) -> None:
    b.linear("k_proj", d, d, bias and key_bias)
    b.linear("v_proj", d, d, bias)
    b.linear("q_proj", d, d, bias)
    b.linear("out_proj", d, d, bias)


@dataclass(frozen=True)
class _Bart:
    """What sets an encoder-decoder apart from BART."""

    positions: str = "learned"
    """``learned`` with two rows more, ``plain``, ``fixed`` sinusoids, or none: a buffer."""
    embedding_norm: bool = True
    """A norm after the embeddings."""
    last_norm: bool = False
    """A norm after the layers."""
    speech: bool = False
    """Whisper: convolutions over mel bins, keys without a bias, nothing shared."""

    def __call__(self, f: Fields, ending: str) -> Draft:
        """Write the model down."""
        draft = Draft()
        if ending == "ForAudioClassification":
            return self._audio(draft, f)
        b = draft.under("" if ending == "Model" else "model")
        if ending == "ForCausalLM":
            self._decoder(b, f)
            draft.input = b.full("decoder.embed_tokens")
            draft.sets = {"is_decoder": True, "is_encoder_decoder": False}
        elif self.speech:
            self._encoder(draft, b, f)
            self._decoder(b, f)
            draft.input = b.full("decoder.embed_tokens")
        else:
            b.embedding("shared", f.size("vocab_size"), f.size("d_model"))
            self._encoder(draft, b, f)
            self._decoder(b, f)
            draft.input = b.full("shared")
            if f.flag("tie_word_embeddings"):
                names = (b.full(f"{stack}.embed_tokens.weight") for stack in ("encoder", "decoder"))
                draft.tie(b.full("shared.weight"), *names)
        if self.positions == "fixed":
            names = {m.name for m in draft.modules if m.short_name == "embed_positions"}
            draft.frozen |= {f"{name}.weight" for name in names}
        self._head(draft, f, ending)
        return draft

    def _head(self, draft: Draft, f: Fields, ending: str) -> None:
        d = f.size("d_model")
        if ending in ("ForCausalLM", "ForConditionalGeneration"):
            add_head(draft, f, Head("", "proj_out" if self.speech else "lm_head", "vocab"), d)
        elif ending == "ForQuestionAnswering":
            add_head(draft, f, Head("", "qa_outputs", 2, True), d)
        elif ending == "ForSequenceClassification":
            draft.linear("classification_head.dense", d, d, True)
            draft.linear("classification_head.out_proj", d, f.labels, True)
        elif ending != "Model":
            raise Unsupported(ending)

    def _encoder(self, draft: Draft, b: Builder, f: Fields) -> None:
        b, d = b.under("encoder"), f.size("d_model")
        if self.speech:
            b.conv("conv1", d, f.size("num_mel_bins"), 3)
            b.conv("conv2", d, d, 3)
            b.embedding("embed_positions", f.size("max_source_positions"), d)
            draft.frozen.add(b.full("embed_positions.weight"))
        else:
            self._embeddings(b, f)
        for layer in range(f.count("encoder_layers")):
            self._layer(b.under(f"layers.{layer}"), f, "encoder", cross=False)
        self._norms(b, d)

    def _decoder(self, b: Builder, f: Fields) -> None:
        b, d = b.under("decoder"), f.size("d_model")
        if self.speech:
            b.embedding("embed_tokens", f.size("vocab_size"), d)
            b.embedding("embed_positions", f.size("max_target_positions"), d)
        else:
            self._embeddings(b, f)
        for layer in range(f.count("decoder_layers")):
            self._layer(b.under(f"layers.{layer}"), f, "decoder", cross=True)
        self._norms(b, d)

    def _embeddings(self, b: Builder, f: Fields) -> None:
        d = f.size("d_model")
        b.embedding("embed_tokens", f.size("vocab_size"), d)
        if self.positions:
            rows = f.size("max_position_embeddings") + 2 * (self.positions == "learned")
            b.embedding("embed_positions", rows, d)

    def _norms(self, b: Builder, d: int) -> None:
        if self.embedding_norm:
            b.norm("layernorm_embedding", d, True)
        if self.last_norm:
            b.norm("layer_norm", d, True)

    def _layer(self, b: Builder, f: Fields, stack: str, cross: bool) -> None:
        d, inner = f.size("d_model"), f.size(f"{stack}_ffn_dim")
        f.split("d_model", f"{stack}_attention_heads")
        _attention(b.under("self_attn"), d, key_bias=not self.speech)
        b.norm("self_attn_layer_norm", d, True)
        if cross:
            _attention(b.under("encoder_attn"), d, key_bias=not self.speech)
            b.norm("encoder_attn_layer_norm", d, True)
        b.linear("fc1", d, inner, True)
        b.linear("fc2", inner, d, True)
        b.norm("final_layer_norm", d, True)

    def _audio(self, draft: Draft, f: Fields) -> Draft:
        """Write Whisper's encoder with a classifier down."""
        if not self.speech:
            raise Unsupported("ForAudioClassification")
        if f.flag("use_weighted_layer_sum"):
            draft.own("", layer_weights=(f.count("encoder_layers") + 1,))
        self._encoder(draft, draft, f)
        d, inner = f.size("d_model"), f.size("classifier_proj_size")
        draft.linear("projector", d, inner, True)
        draft.linear("classifier", inner, f.labels, True)
        draft.input = "encoder.conv1"
        return draft


def _opt(f: Fields, ending: str) -> Draft:
    """Write an OPT down: a BART decoder, whose embeddings may be narrower than its layers."""
    heads = {
        "Model": Head(""),
        "ForCausalLM": Head("model", "lm_head", "vocab"),
        "ForSequenceClassification": Head("model", "score", "labels"),
        "ForQuestionAnswering": Head("model", "qa_outputs", 2, True),
    }
    if ending not in heads:
        raise Unsupported(ending)
    draft = Draft()
    b = draft.under(heads[ending].body).under("decoder")
    d, width = f.size("hidden_size"), f.size("word_embed_proj_dim")
    affine = f.values.get("layer_norm_elementwise_affine") is not False
    b.embedding("embed_tokens", f.size("vocab_size"), width)
    draft.input = b.full("embed_tokens")
    b.embedding("embed_positions", f.size("max_position_embeddings") + 2, d)
    if width != d:
        b.linear("project_out", d, width)
        b.linear("project_in", width, d)
    if affine and f.flag("do_layer_norm_before") and not f.flag("_remove_final_layer_norm"):
        b.norm("final_layer_norm", d, True)
    for layer in range(f.count("num_hidden_layers")):
        _opt_layer(b.under(f"layers.{layer}"), f, affine)
    add_head(draft, f, heads[ending], width)
    return draft


def _opt_layer(b: Builder, f: Fields, affine: bool) -> None:
    d, inner, bias = f.size("hidden_size"), f.size("ffn_dim"), f.flag("enable_bias")
    f.split("hidden_size", "num_attention_heads")
    _attention(b.under("self_attn"), d, bias)
    if affine:
        b.norm("self_attn_layer_norm", d, True)
    b.linear("fc1", d, inner, bias)
    b.linear("fc2", inner, d, bias)
    if affine:
        b.norm("final_layer_norm", d, True)


def _settle_opt(values: dict[str, Any]) -> None:
    if values.get("word_embed_proj_dim") is None:
        values["word_embed_proj_dim"] = values.get("hidden_size")


FAMILIES = {
    "bart": Family("Bart", _Bart()),
    "mbart": Family("MBart", _Bart(last_norm=True)),
    "blenderbot": Family("Blenderbot", _Bart("plain", embedding_norm=False, last_norm=True)),
    "m2m_100": Family("M2M100", _Bart("", embedding_norm=False, last_norm=True)),
    "pegasus": Family("Pegasus", _Bart("fixed", embedding_norm=False, last_norm=True)),
    "whisper": Family("Whisper", _Bart("", embedding_norm=False, last_norm=True, speech=True)),
    "opt": Family("OPT", _opt, _settle_opt),
}
