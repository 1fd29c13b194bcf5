"""Llama and its kin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunemath.space.blueprint.families.decoder import NORMS, Attention, Decoder, Gated, Plain
from tunemath.space.blueprint.families.draft import Family
from tunemath.space.blueprint.families.settle import (
    settle_cohere2,
    settle_every_other,
    settle_exaone4,
    settle_gemma3,
    settle_heads,
    settle_olmo3,
    settle_qwen,
    settle_smollm3,
)

__all__ = ["FAMILIES"]


def _family(
    classes: str | tuple[str, ...],
    decoder: Decoder,
    settle: Callable[[dict[str, Any]], None] = settle_heads,
) -> Family:
    return Family(classes, decoder, settle)


_BIASED = Attention(bias="attention_bias", out_bias="attention_bias")
_FOUR_NORMS = (*NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
_FUSED = Gated(fused=True)
_GLM = Attention(bias="attention_bias")

FAMILIES = {
    "llama": _family("Llama", Decoder(_BIASED, Gated("mlp_bias"))),
    "mistral": _family("Mistral", Decoder(questions="model")),
    "qwen2": _family("Qwen2", Decoder(Attention(bias=True)), settle_qwen),
    "qwen3": _family(
        "Qwen3",
        Decoder(Attention("attention_bias", "attention_bias", norms="head")),
        settle_qwen,
    ),
    "gemma": _family("Gemma", Decoder(_BIASED)),
    "gemma2": _family("Gemma2", Decoder(_BIASED, norms=_FOUR_NORMS), settle_every_other),
    "gemma3_text": _family(
        ("Gemma3Text", "Gemma3"),
        Decoder(Attention("attention_bias", "attention_bias", norms="head"), norms=_FOUR_NORMS),
        settle_gemma3,
    ),
    "phi": _family(
        "Phi",
        Decoder(
            Attention(
                bias=True,
                out_bias=True,
                out="dense",
                norms="share+",
                norms_if="qk_layernorm",
                norm_names=("q_layernorm", "k_layernorm"),
            ),
            Plain("fc1", "fc2", bias=True),
            norms=NORMS[:1],
            norm_bias=True,
            last="final_layernorm",
            head_bias=True,
        ),
    ),
    "phi3": _family("Phi3", Decoder(Attention(fused=True), _FUSED)),
    "smollm3": _family("SmolLM3", Decoder(_BIASED, Gated("mlp_bias")), settle_smollm3),
    "olmo": _family("Olmo", Decoder(_BIASED, no_norms=True)),
    "olmo2": _family(
        "Olmo2",
        Decoder(
            Attention("attention_bias", "attention_bias", norms="all"),
            norms=_POST_NORMS,
        ),
    ),
    "granite": _family("Granite", Decoder(_BIASED, Gated("mlp_bias"))),
    "starcoder2": _family(
        "Starcoder2",
        Decoder(
            Attention("use_bias", "use_bias"), Plain("c_fc", "c_proj", "use_bias"), norm_bias=True
        ),
    ),
    "cohere": _family(
        "Cohere",
        Decoder(
            Attention("attention_bias", "attention_bias", norms="heads", norms_if="use_qk_norm"),
            norms=NORMS[:1],
        ),
    ),
    "cohere2": _family("Cohere2", Decoder(_BIASED, norms=NORMS[:1]), settle_cohere2),
    "stablelm": _family(
        "StableLm",
        Decoder(
            Attention(
                bias="use_qkv_bias",
                norms="each",
                norms_if="qk_layernorm",
                norm_names=("q_layernorm", "k_layernorm"),
                own_head_dim=False,
            ),
            norm_bias=True,
            parallel="use_parallel_residual",
        ),
    ),
    "glm": _family("Glm", Decoder(_GLM, _FUSED)),
    "glm4": _family(
        "Glm4",
        Decoder(_GLM, _FUSED, norms=(*NORMS, "post_self_attn_layernorm", "post_mlp_layernorm")),
    ),
    "nemotron": _family(
        "Nemotron", Decoder(_BIASED, Plain("up_proj", "down_proj", "mlp_bias"), norm_bias=True)
    ),
    "arcee": _family("Arcee", Decoder(_BIASED, Plain("up_proj", "down_proj", "mlp_bias"))),
    "ernie4_5": _family("Ernie4_5", Decoder(Attention("use_bias", "use_bias"), Gated("use_bias"))),
    "exaone4": _family(
        "Exaone4", Decoder(Attention(norms="head"), norms=_POST_NORMS), settle_exaone4
    ),
    "ministral3": _family("Ministral3", Decoder(questions="model")),
    "olmo3": _family(
        "Olmo3",
        Decoder(Attention("attention_bias", "attention_bias", norms="all"), norms=_POST_NORMS),
        settle_olmo3,
    ),
    "seed_oss": _family(
        "SeedOss", Decoder(Attention("attention_bias", "attention_out_bias"), Gated("mlp_bias"))
    ),
}
