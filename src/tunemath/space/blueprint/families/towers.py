"""CLIP and SigLIP, a tower for text and one for images; Gemma 3, which sees through SigLIP's."""

from __future__ import annotations

from typing import Any

from tunemath.space.blueprint.families.decoder import Decoder
from tunemath.space.blueprint.families.decoders import FAMILIES as DECODERS
from tunemath.space.blueprint.families.draft import Draft, Family, Head, Unsupported, add_head
from tunemath.space.blueprint.families.fields import Fields
from tunemath.space.blueprint.record import Builder

__all__ = ["FAMILIES"]


def _layers(b: Builder, f: Fields, norm_first: bool) -> None:
    """Add the layers of a tower; SigLIP registers their first norm before attention."""
    d, inner = f.size("hidden_size"), f.size("intermediate_size")
    f.split("hidden_size", "num_attention_heads")
    for layer in range(f.count("num_hidden_layers")):
        block = b.under(f"encoder.layers.{layer}")
        if norm_first:
            block.norm("layer_norm1", d, True)
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            block.linear(f"self_attn.{name}", d, d, True)
        block.norm("layer_norm2" if norm_first else "layer_norm1", d, True)
        _mlp(block, d, inner)
        if not norm_first:
            block.norm("layer_norm2", d, True)


def _mlp(b: Builder, d: int, inner: int) -> None:
    b.linear("mlp.fc1", d, inner, True)
    b.linear("mlp.fc2", inner, d, True)


def _text(b: Builder, f: Fields, siglip: bool) -> str:
    """Add the tower for text; return the name of its embedding."""
    d = f.size("hidden_size")
    b.embedding("embeddings.token_embedding", f.size("vocab_size"), d)
    b.embedding("embeddings.position_embedding", f.size("max_position_embeddings"), d)
    _layers(b, f, siglip)
    b.norm("final_layer_norm", d, True)
    if siglip:
        b.linear("head", d, f.size("projection_size"), True)
    return b.full("embeddings.token_embedding")


def _clip_vision(b: Builder, f: Fields) -> str:
    d, patch = f.size("hidden_size"), f.size("patch_size")
    b.own("embeddings", class_embedding=(d,))
    b.conv("embeddings.patch_embedding", d, f.size("num_channels"), patch, patch, bias=False)
    b.embedding("embeddings.position_embedding", _square(f) + 1, d)
    b.norm("pre_layrnorm", d, True)
    _layers(b, f, norm_first=False)
    b.norm("post_layernorm", d, True)
    return b.full("embeddings.patch_embedding")


def _siglip_vision(b: Builder, f: Fields) -> str:
    d, patch = f.size("hidden_size"), f.size("patch_size")
    b.conv("embeddings.patch_embedding", d, f.size("num_channels"), patch, patch)
    b.embedding("embeddings.position_embedding", _square(f), d)
    _layers(b, f, norm_first=True)
    b.norm("post_layernorm", d, True)
    if f.values.get("vision_use_head") is not False:
        head = b.under("head")
        head.own("", probe=(1, 1, d))
        head.own("attention", "attention", in_proj_weight=(3 * d, d), in_proj_bias=(3 * d,))
        head.linear("attention.out_proj", d, d, True)
        head.norm("layernorm", d, True)
        _mlp(head, d, f.size("intermediate_size"))
    return b.full("embeddings.patch_embedding")


def _square(f: Fields) -> int:
    return (f.size("image_size") // f.size("patch_size")) ** 2


def _clip(f: Fields, ending: str) -> Draft:
    """Write a CLIP down: both towers, or the one for images with a classifier."""
    draft = Draft()
    if ending == "ForImageClassification":
        _clip_vision(draft.under("vision_model"), f.part("vision_config"))
        _classify(draft, f)
        return draft
    if ending != "Model":
        raise Unsupported(ending)
    text, vision, out = f.part("text_config"), f.part("vision_config"), f.size("projection_dim")
    draft.own("", logit_scale=())
    _text(draft.under("text_model"), text, siglip=False)
    _clip_vision(draft.under("vision_model"), vision)
    draft.linear("visual_projection", vision.size("hidden_size"), out)
    draft.linear("text_projection", text.size("hidden_size"), out)
    return draft


def _clip_text(f: Fields, ending: str) -> Draft:
    return _one(f, ending, "text_projection", text=True)


def _clip_image(f: Fields, ending: str) -> Draft:
    return _one(f, ending, "visual_projection", text=False)


def _one(f: Fields, ending: str, projection: str, text: bool) -> Draft:
    """Write one of CLIP's towers down, with or without its projection."""
    if ending not in ("Model", "ModelWithProjection"):
        raise Unsupported(ending)
    draft = Draft()
    body = "" if ending == "Model" else ("text_model" if text else "vision_model")
    b = draft.under(body)
    draft.input = _text(b, f, siglip=False) if text else _clip_vision(b, f)
    if body:
        draft.linear(projection, f.size("hidden_size"), f.size("projection_dim"))
    return draft


def _siglip(f: Fields, ending: str) -> Draft:
    """Write a SigLIP down: both towers, or the one for images with a classifier."""
    draft = Draft()
    if ending == "ForImageClassification":
        draft.input = _siglip_vision(draft.under("vision_model"), f.part("vision_config"))
        _classify(draft, f)
        return draft
    if ending != "Model":
        raise Unsupported(ending)
    draft.own("", logit_scale=(1,), logit_bias=(1,))
    draft.input = _text(draft.under("text_model"), f.part("text_config"), siglip=True)
    _siglip_vision(draft.under("vision_model"), f.part("vision_config"))
    return draft


def _siglip_tower(f: Fields, ending: str) -> Draft:
    if ending != "Model":
        raise Unsupported(ending)
    draft = Draft()
    text = f.model_type == "siglip_text_model"
    draft.input = _text(draft, f, siglip=True) if text else _siglip_vision(draft, f)
    return draft


def _classify(draft: Draft, f: Fields) -> None:
    if f.labels:
        draft.linear("classifier", f.part("vision_config").size("hidden_size"), f.labels, True)


def _gemma3(f: Fields, ending: str) -> Draft:
    """Write a Gemma 3 that sees down: SigLIP's tower, a projection, and the decoder."""
    heads = {
        "Model": Head(""),
        "ForConditionalGeneration": Head("model", "lm_head", "vocab"),
        "ForSequenceClassification": Head("model", "score", "labels"),
    }
    decoder = DECODERS["gemma3_text"].build
    if ending not in heads or not isinstance(decoder, Decoder):
        raise Unsupported(ending)
    draft = Draft()
    b = draft.under(heads[ending].body)
    text, vision = f.part("text_config"), f.part("vision_config")
    _siglip_vision(b.under("vision_tower"), vision)
    d, seen = text.size("hidden_size"), vision.size("hidden_size")
    b.own("multi_modal_projector", mm_input_projection_weight=(seen, d))
    b.norm("multi_modal_projector.mm_soft_emb_norm", seen)
    draft.input = decoder.base(b.under("language_model"), text)
    values = {**f.values, "vocab_size": text.values.get("vocab_size")}
    add_head(draft, Fields(values), heads[ending], d)
    return draft


def _settle_siglip_text(values: dict[str, Any]) -> None:
    if values.get("projection_size") is None:
        values["projection_size"] = values.get("hidden_size")


FAMILIES = {
    "clip": Family("CLIP", _clip),
    "clip_text_model": Family("CLIPText", _clip_text),
    "clip_vision_model": Family("CLIPVision", _clip_image),
    "gemma3": Family("Gemma3", _gemma3),
    "siglip": Family("Siglip", _siglip),
    "siglip_text_model": Family("SiglipText", _siglip_tower, _settle_siglip_text),
    "siglip_vision_model": Family("SiglipVision", _siglip_tower),
}
