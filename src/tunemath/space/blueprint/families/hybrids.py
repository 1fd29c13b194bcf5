"""Decoders that mix attention with recurrent layers."""

from __future__ import annotations

import math
from typing import Any

from tunemath.space.blueprint.families.decoder import Attention, Decoder, Gated
from tunemath.space.blueprint.families.draft import Family, Unsupported
from tunemath.space.blueprint.families.fields import Fields
from tunemath.space.blueprint.families.mixtures import (
    Mixture,
    every_step,
    settle_mixture,
    shared_with_gate,
)
from tunemath.space.blueprint.families.settle import settle_layers, settle_shared_heads
from tunemath.space.blueprint.record import Builder

__all__ = ["FAMILIES"]


def _periodic(f: Fields, layer: int, what: str) -> bool:
    """Whether a layer is one of Jamba's attention or expert layers."""
    return layer % f.size(f"{what}_layer_period") == f.size(f"{what}_layer_offset", least=0)


def _with_experts(f: Fields, layer: int) -> bool:
    return f.size("num_experts") > 1 and _periodic(f, layer, "expert")


def _mamba(b: Builder, f: Fields, layer: int) -> bool:
    """Add a Mamba block to every layer without attention."""
    if _periodic(f, layer, "attn"):
        return False
    d, states, rank = f.size("hidden_size"), f.size("mamba_d_state"), f.size("mamba_dt_rank")
    inner = f.size("mamba_expand") * d
    bias = f.flag("mamba_proj_bias")
    b = b.under("mamba")
    b.own("", A_log=(inner, states), D=(inner,))
    kernel, conv_bias = f.size("mamba_d_conv"), f.flag("mamba_conv_bias")
    b.conv("conv1d", inner, 1, kernel, bias=conv_bias, groups=inner)
    b.linear("in_proj", d, 2 * inner, bias)
    b.linear("x_proj", inner, rank + 2 * states)
    b.linear("dt_proj", rank, inner, True)
    b.linear("out_proj", inner, d, bias)
    b.norm("dt_layernorm", rank)
    b.norm("b_layernorm", states)
    b.norm("c_layernorm", states)
    return True


def _settle_jamba(values: dict[str, Any]) -> None:
    settle_shared_heads(values)
    if values.get("mamba_dt_rank") == "auto" and type(values.get("hidden_size")) is int:
        values["mamba_dt_rank"] = math.ceil(values["hidden_size"] / 16)


def _delta_net(b: Builder, f: Fields, layer: int) -> bool:
    """Add a gated delta net to every layer of linear attention."""
    kind = f.strings("layer_types")[layer : layer + 1]
    if kind == ["full_attention"]:
        return False
    if kind not in (["linear_attention"], ["mamba"]):
        raise Unsupported("layer_types")
    d, heads = f.size("hidden_size"), f.size("linear_num_value_heads")
    keys = f.size("linear_num_key_heads") * f.size("linear_key_head_dim")
    values = heads * f.size("linear_value_head_dim")
    b = b.under("linear_attn")
    b.own("", dt_bias=(heads,), A_log=(heads,))
    width, kernel = 2 * keys + values, f.size("linear_conv_kernel_dim")
    b.conv("conv1d", width, 1, kernel, bias=False, groups=width)
    b.linear("in_proj_qkvz", d, 2 * keys + 2 * values)
    b.linear("in_proj_ba", d, 2 * heads)
    b.norm("norm", f.size("linear_value_head_dim"))
    b.linear("out_proj", values, d)
    return True


def _settle_next(values: dict[str, Any]) -> None:
    settle_mixture(values)
    every = values.pop("full_attention_interval", 4)
    if type(every) is int and every > 0:
        kinds = ("full_attention", "linear_attention")
        settle_layers(values, lambda layer: kinds[bool((layer + 1) % every)])


FAMILIES = {
    "jamba": Family(
        "Jamba",
        Decoder(
            Attention(),
            Mixture(
                "num_experts",
                "intermediate_size",
                "feed_forward",
                "router",
                where=_with_experts,
                dense=Gated(name="feed_forward"),
            ),
            norms=("input_layernorm", "pre_ff_layernorm"),
            mixer=_mamba,
            last="final_layernorm",
        ),
        _settle_jamba,
    ),
    "qwen3_next": Family(
        "Qwen3Next",
        Decoder(
            Attention("attention_bias", "attention_bias", norms="head", gate=True),
            Mixture("num_experts", where=every_step, shared=shared_with_gate),
            mixer=_delta_net,
        ),
        _settle_next,
    ),
}
