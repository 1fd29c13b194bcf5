"""T5 and its kin: an encoder and a decoder that share one embedding, tied whatever is saved."""

from __future__ import annotations

from typing import Any

from tunemath.errors import ModelError
from tunemath.space.blueprint.families.draft import Draft, Family, Unsupported
from tunemath.space.blueprint.families.fields import Fields
from tunemath.space.blueprint.record import Builder

__all__ = ["FAMILIES"]


class _T5:
    """The modules of a T5; in ``every``, UMT5, each layer has position biases of its own."""

    def __init__(self, every: bool = False) -> None:
        self.every = every

    def __call__(self, f: Fields, ending: str) -> Draft:
        """Write the model down."""
        draft = Draft()
        inner = ending in ("ForSequenceClassification", "ForTokenClassification")
        b = draft.under("transformer" if inner else "")
        d = f.size("d_model")
        b.embedding("shared", f.size("vocab_size"), d)
        draft.input = b.full("shared")
        self._stack(draft, b, f, "encoder", f.count("num_layers"))
        if ending not in ("EncoderModel", "ForTokenClassification"):
            self._stack(draft, b, f, "decoder", f.count("num_decoder_layers"))
        elif not self.every:
            draft.sets["is_encoder_decoder"] = False
        if ending == "ForConditionalGeneration":
            draft.linear("lm_head", d, f.size("vocab_size"))
            draft.output = "lm_head"
            draft.tie("shared.weight", "lm_head.weight")
        elif ending == "ForQuestionAnswering":
            draft.linear("qa_outputs", d, f.labels, True)
        elif ending == "ForTokenClassification":
            draft.linear("classifier", d, f.labels, True)
        elif ending == "ForSequenceClassification":
            draft.linear("classification_head.dense", d, d, True)
            draft.linear("classification_head.out_proj", d, f.labels, True)
        elif ending not in ("Model", "EncoderModel"):
            raise Unsupported(ending)
        return draft

    def _stack(self, draft: Draft, b: Builder, f: Fields, name: str, layers: int) -> None:
        stack, d = b.under(name), f.size("d_model")
        stack.embedding("embed_tokens", f.size("vocab_size"), d)
        draft.tie(b.full("shared.weight"), stack.full("embed_tokens.weight"))
        blocks = ["SelfAttention"] + ["EncDecAttention"] * (name == "decoder")
        for layer in range(layers):
            for place, attention in enumerate(blocks):
                inner = stack.under(f"block.{layer}.layer.{place}")
                biased = place == 0 and (self.every or layer == 0)
                self._attention(inner.under(attention), f, biased)
                inner.norm("layer_norm", d)
            inner = stack.under(f"block.{layer}.layer.{len(blocks)}")
            self._dense(inner.under("DenseReluDense"), f)
            inner.norm("layer_norm", d)
        stack.norm("final_layer_norm", d)

    @staticmethod
    def _attention(b: Builder, f: Fields, biased: bool) -> None:
        d, heads = f.size("d_model"), f.size("num_heads")
        inner = heads * f.size("d_kv")
        for name in ("q", "k", "v"):
            b.linear(name, d, inner)
        b.linear("o", inner, d)
        if biased:
            b.embedding("relative_attention_bias", f.size("relative_attention_num_buckets"), heads)

    @staticmethod
    def _dense(b: Builder, f: Fields) -> None:
        d, inner = f.size("d_model"), f.size("d_ff")
        names = ("wi_0", "wi_1") if _gated(f) else ("wi",)
        for name in names:
            b.linear(name, d, inner)
        b.linear("wo", inner, d)


def _gated(f: Fields) -> bool:
    kind = f.text("feed_forward_proj")
    parts = kind.split("-")
    if not kind or len(parts) > 2 or (len(parts) == 2 and parts[0] != "gated"):
        raise ModelError(
            f"the configuration of this {f.model_type} has {kind!r:.60} as feed_forward_proj; "
            "expected an activation such as relu, or gated- before one"
        )
    # A saved configuration holds what follows from it as well, and that is what counts.
    return f.flag("is_gated_act") if f.has("is_gated_act") else parts[0] == "gated"


def _settle(values: dict[str, Any]) -> None:
    if values.get("num_decoder_layers") is None:
        values["num_decoder_layers"] = values.get("num_layers")
    # transformers ties all the same, though T5 1.1 and Flan-T5 are saved with false.
    values["tie_word_embeddings"] = True


FAMILIES = {
    "t5": Family("T5", _T5(), _settle),
    "mt5": Family("MT5", _T5(), _settle),
    "umt5": Family("UMT5", _T5(every=True), _settle),
}
