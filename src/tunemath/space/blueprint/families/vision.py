"""ViT, DeiT and DINOv2: transformers over the patches of an image."""

from __future__ import annotations

from typing import Any

from tunemath.space.blueprint.families.decoder import head_dim
from tunemath.space.blueprint.families.draft import Draft, Family, Unsupported
from tunemath.space.blueprint.families.fields import Fields
from tunemath.space.blueprint.record import Builder

__all__ = ["FAMILIES", "patches"]


def _pair(f: Fields, key: str) -> tuple[int, int]:
    """Return a height and a width, which one number may stand for."""
    value = f.values.get(key)
    if isinstance(value, list | tuple):
        sides = f.whole_numbers(key)
        if len(sides) == 2 and min(sides) > 0:
            return sides[0], sides[1]
        raise f.wrong(key, "a height and a width of at least 1")
    return f.size(key), f.size(key)


def patches(f: Fields) -> int:
    """Return how many patches an image is cut into."""
    image, patch = _pair(f, "image_size"), _pair(f, "patch_size")
    return (image[0] // patch[0]) * (image[1] // patch[1])


def _attention(b: Builder, f: Fields) -> None:
    d, heads, bias = f.size("hidden_size"), f.size("num_attention_heads"), f.flag("qkv_bias")
    width = head_dim(f)
    for name in ("q_proj", "k_proj", "v_proj"):
        b.linear(name, d, heads * width, bias)
    b.linear("o_proj", heads * width, d, True)


def _project(b: Builder, f: Fields) -> None:
    name = "embeddings.patch_embeddings.projection"
    b.conv(name, f.size("hidden_size"), f.size("num_channels"), *_pair(f, "patch_size"))


class _Vit:
    """The modules of a ViT; DeiT has a token for distillation as well."""

    def __init__(self, body: str, distilled: bool = False) -> None:
        self.body, self.distilled = body, distilled

    def __call__(self, f: Fields, ending: str) -> Draft:
        """Write the model down."""
        draft = Draft()
        b = draft.under("" if ending == "Model" else self.body)
        draft.input = b.full("embeddings.patch_embeddings")
        d, inner = f.size("hidden_size"), f.size("intermediate_size")
        self._tokens(b, f, masked=ending == "ForMaskedImageModeling")
        _project(b, f)
        for layer in range(f.count("num_hidden_layers")):
            block = b.under(f"layers.{layer}")
            _attention(block.under("attention"), f)
            block.norm("layernorm_before", d, True)
            block.norm("layernorm_after", d, True)
            block.linear("mlp.fc1", d, inner, True)
            block.linear("mlp.fc2", inner, d, True)
        b.norm("layernorm", d, True)
        self._head(draft, f, ending)
        return draft

    def _tokens(self, b: Builder, f: Fields, masked: bool) -> None:
        d = f.size("hidden_size")
        token = (1, 1, d)
        shapes: dict[str, tuple[int, ...]] = {"cls_token": token}
        if masked:
            shapes["mask_token"] = token
        shapes["position_embeddings"] = (1, patches(f) + 1 + self.distilled, d)
        if self.distilled:
            shapes["distillation_token"] = token
        b.own("embeddings", "other", **shapes)

    def _head(self, draft: Draft, f: Fields, ending: str) -> None:
        d = f.size("hidden_size")
        if ending == "Model":
            draft.linear("pooler.dense", d, f.size("pooler_output_size"), True)
        elif ending == "ForMaskedImageModeling":
            pixels = f.size("encoder_stride") ** 2 * f.size("num_channels")
            draft.conv("decoder.0", pixels, d, 1, 1)
        elif ending == "ForImageClassification":
            _classify(draft, f, d, "classifier")
        elif ending == "ForImageClassificationWithTeacher" and self.distilled:
            _classify(draft, f, d, "cls_classifier")
            _classify(draft, f, d, "distillation_classifier")
        else:
            raise Unsupported(ending)


def _classify(draft: Draft, f: Fields, width: int, name: str) -> None:
    if f.labels:
        draft.linear(name, width, f.labels, True)


def _dinov2(f: Fields, ending: str) -> Draft:
    """Write a DINOv2 down."""
    if ending not in ("Model", "Backbone", "ForImageClassification"):
        raise Unsupported(ending)
    draft = Draft()
    b = draft.under("dinov2" if ending == "ForImageClassification" else "")
    draft.input = b.full("embeddings.patch_embeddings")
    d = f.size("hidden_size")
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, d)}
    if f.flag("use_mask_token"):
        shapes["mask_token"] = (1, d)
    b.own("embeddings", "other", **shapes, position_embeddings=(1, patches(f) + 1, d))
    _project(b, f)
    for layer in range(f.count("num_hidden_layers")):
        _dinov2_layer(b.under(f"encoder.layer.{layer}"), f, d)
    b.norm("layernorm", d, True)
    if ending == "ForImageClassification":
        _classify(draft, f, 2 * d, "classifier")
    return draft


def _dinov2_layer(b: Builder, f: Fields, d: int) -> None:
    b.norm("norm1", d, True)
    _attention(b.under("attention"), f)
    b.own("layer_scale1", lambda1=(d,))
    b.norm("norm2", d, True)
    inner = d * f.size("mlp_ratio")
    if f.flag("use_swiglu_ffn"):
        inner = (int(inner * 2 / 3) + 7) // 8 * 8  # two thirds, up to a multiple of eight
        b.linear("mlp.gate_proj", d, inner, True)
        b.linear("mlp.up_proj", d, inner, True)
        b.linear("mlp.down_proj", inner, d, True)
    else:
        b.linear("mlp.fc1", d, inner, True)
        b.linear("mlp.fc2", inner, d, True)
    b.own("layer_scale2", lambda1=(d,))


def _settle(values: dict[str, Any]) -> None:
    values["pooler_output_size"] = values.get("pooler_output_size") or values.get("hidden_size")


FAMILIES = {
    "vit": Family("ViT", _Vit("vit"), _settle),
    "deit": Family("DeiT", _Vit("deit", distilled=True), _settle),
    "dinov2": Family("Dinov2", _dinov2),
}
