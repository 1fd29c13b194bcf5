"""Decoders with a mixture of experts, as transformers 5 holds them: experts as single tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tunemath.space.blueprint.families.decoder import Attention, Decoder, Gated, heads_of
from tunemath.space.blueprint.families.draft import Family
from tunemath.space.blueprint.families.fields import MOST, Fields
from tunemath.space.blueprint.families.settle import (
    settle_every_other,
    settle_heads,
    settle_layers,
    settle_shared_heads,
)
from tunemath.space.blueprint.record import Builder

__all__ = ["FAMILIES", "Mixture", "every_step", "settle_mixture", "shared_with_gate"]


def _always(f: Fields, layer: int) -> bool:
    return True


def every_step(f: Fields, layer: int) -> bool:
    """Whether a layer of Qwen's mixtures has experts."""
    step = f.size("decoder_sparse_step")
    return (layer + 1) % step == 0 and layer not in f.whole_numbers("mlp_only_layers")


def _after_dense(f: Fields, layer: int) -> bool:
    """Whether a layer comes after the first dense ones, as in DeepSeek's."""
    return layer >= f.size("first_k_dense_replace", least=0)


def _listed(f: Fields, layer: int) -> bool:
    """Whether Llama 4 lists a layer."""
    return layer in f.whole_numbers("moe_layers")


@dataclass(frozen=True)
class Mixture:
    """A feed-forward block of experts: gate_up_proj (E, 2I, D) and down_proj (E, D, I)."""

    experts: str
    """The field of E, their number."""
    size: str = "moe_intermediate_size"
    """The field of I, the width inside one."""
    name: str = "mlp"
    router: str = "gate"
    router_linear: bool = False
    """Whether the router is a linear layer, not a bare parameter."""
    router_first: bool = True
    turned: bool = False
    """Whether experts are stored from input to output: (E, D, 2I) and (E, I, D)."""
    biases: bool = False
    """Of the router and the experts (gpt-oss)."""
    where: Callable[[Fields, int], bool] = _always
    """Which layers have experts."""
    dense: Gated = field(default_factory=Gated)
    """The block of the other layers."""
    shared: Callable[[Builder, Fields], None] | None = None
    """Adds what all tokens pass through."""

    def __call__(self, b: Builder, f: Fields, layer: int) -> None:
        """Add the block of a layer."""
        if not self.where(f, layer):
            self.dense(b, f, layer)
            return
        b = b.under(self.name)
        if self.router_first:
            self._router(b, f)
        self._experts(b, f)
        if not self.router_first:
            self._router(b, f)
        if self.shared:
            self.shared(b, f)

    def _router(self, b: Builder, f: Fields) -> None:
        experts, d = f.size(self.experts), f.size("hidden_size")
        if self.router_linear:
            b.linear(self.router, d, experts)
        elif self.biases:
            b.own(self.router, weight=(experts, d), bias=(experts,))
        else:
            b.own(self.router, weight=(experts, d))

    def _experts(self, b: Builder, f: Fields) -> None:
        experts, d, inner = f.size(self.experts), f.size("hidden_size"), f.size(self.size)
        up, down = (experts, 2 * inner, d), (experts, d, inner)
        if self.turned:
            up, down = (experts, d, 2 * inner), (experts, inner, d)
        if self.biases:
            b.own(
                "experts", "experts",
                gate_up_proj=up, gate_up_proj_bias=(experts, 2 * inner),
                down_proj=down, down_proj_bias=(experts, d),
            )  # fmt: skip
        else:
            b.own("experts", "experts", gate_up_proj=up, down_proj=down)


def shared_with_gate(b: Builder, f: Fields) -> None:
    """Add Qwen's shared expert, whose share a gate of one output decides."""
    Gated(size="shared_expert_intermediate_size", name="shared_expert")(b, f, 0)
    b.linear("shared_expert_gate", f.size("hidden_size"), 1)


def _shared_experts(b: Builder, f: Fields) -> None:
    """Add DeepSeek's shared experts: one block as wide as all of them."""
    d = f.size("hidden_size")
    inner = f.size("moe_intermediate_size") * f.size("n_shared_experts")
    b = b.under("shared_experts")
    b.linear("gate_proj", d, inner)
    b.linear("up_proj", d, inner)
    b.linear("down_proj", inner, d)


def _shared_llama4(b: Builder, f: Fields) -> None:
    Gated(name="shared_expert")(b, f, 0)


def _granite_shared(b: Builder, f: Fields, layer: int) -> None:
    """Add Granite's experts and, beside them, a dense block where it has a size."""
    _GRANITE(b, f, layer)
    d, inner = f.size("hidden_size"), f.size("shared_intermediate_size", least=0)
    if inner:
        b.linear("shared_mlp.input_linear", d, 2 * inner)
        b.linear("shared_mlp.output_linear", inner, d)


def _latent(b: Builder, f: Fields) -> None:
    """Add DeepSeek's latent attention: queries, keys and values from low-rank projections."""
    d, heads, bias = f.size("hidden_size"), f.size("num_attention_heads"), f.flag("attention_bias")
    heads_of(f)
    positional, rank = f.size("qk_rope_head_dim"), f.size("kv_lora_rank")
    plain, value = f.size("qk_nope_head_dim"), f.size("v_head_dim")
    queries = heads * (plain + positional)
    if f.has("q_lora_rank"):
        b.linear("q_a_proj", d, f.size("q_lora_rank"), bias)
        b.norm("q_a_layernorm", f.size("q_lora_rank"))
        b.linear("q_b_proj", f.size("q_lora_rank"), queries)
    else:
        b.linear("q_proj", d, queries)
    b.linear("kv_a_proj_with_mqa", d, rank + positional, bias)
    b.norm("kv_a_layernorm", rank)
    b.linear("kv_b_proj", rank, heads * (plain + value))
    b.linear("o_proj", heads * value, d, bias)


def settle_mixture(values: dict[str, Any]) -> None:
    """Fill in Qwen's list of dense layers, which may be null."""
    settle_heads(values)
    if "mlp_only_layers" in values and values["mlp_only_layers"] is None:
        values["mlp_only_layers"] = []


def _settle_qwen2(values: dict[str, Any]) -> None:
    """Fill in Qwen 2's windows: in every other layer up to a certain one, if asked for."""
    settle_mixture(values)
    asked, last = values.get("use_sliding_window"), values.get("max_window_layers")
    last = last if asked and type(last) is int else 0
    kinds = ("full_attention", "sliding_attention")
    settle_layers(values, lambda layer: kinds[bool((layer + 1) % 2) and layer < last])
    if not asked:
        values["sliding_window"] = 0


def _settle_qwen3(values: dict[str, Any]) -> None:
    settle_mixture(values)
    if not values.get("use_sliding_window"):
        values["sliding_window"] = None


def _settle_latent(values: dict[str, Any]) -> None:
    settle_heads(values)
    # Rotary positions are a part of a head, and transformers calls that part the head.
    values["head_dim"] = values.get("qk_rope_head_dim")


def _settle_llama4(values: dict[str, Any]) -> None:
    settle_heads(values)
    layers, step = values.get("num_hidden_layers"), values.get("interleave_moe_layer_step")
    if values.get("moe_layers") is None and type(layers) is int and type(step) is int and step > 0:
        values["moe_layers"] = [*range(step - 1, min(layers, MOST), step)]
    every = values.get("no_rope_layer_interval")
    if type(every) is int and every > 0:
        settle_layers(values, lambda layer: int((layer + 1) % every != 0), "no_rope_layers")
    rotary = values.get("no_rope_layers")
    if isinstance(rotary, list) and len(rotary) == layers:
        kinds = ("full_attention", "chunked_attention")
        settle_layers(values, lambda layer: kinds[bool(rotary[layer])])


_BIASED = Attention("attention_bias", "attention_bias")
_GRANITE = Mixture("num_local_experts", "intermediate_size", "block_sparse_moe", "router")
_QWEN = Mixture("num_local_experts", router_first=False, where=every_step)
_DEEPSEEK = Mixture(
    "n_routed_experts", router_first=False, where=_after_dense, shared=_shared_experts
)

FAMILIES = {
    "mixtral": Family(
        "Mixtral",
        Decoder(feed_forward=Mixture("num_local_experts", "intermediate_size"), questions="model"),
        settle_shared_heads,
    ),
    "qwen2_moe": Family(
        "Qwen2Moe",
        Decoder(
            Attention("qkv_bias"),
            Mixture("num_experts", where=every_step, shared=shared_with_gate),
            questions="model",
        ),
        _settle_qwen2,
    ),
    "qwen3_moe": Family(
        "Qwen3Moe",
        Decoder(Attention("attention_bias", "attention_bias", norms="head"), _QWEN),
        _settle_qwen3,
    ),
    "olmoe": Family(
        "Olmoe",
        Decoder(
            Attention("attention_bias", "attention_bias", norms="all"),
            Mixture("num_experts", "intermediate_size"),
        ),
        settle_heads,
    ),
    "deepseek_v2": Family("DeepseekV2", Decoder(_latent, _DEEPSEEK), _settle_latent),
    "deepseek_v3": Family("DeepseekV3", Decoder(_latent, _DEEPSEEK), _settle_latent),
    "gpt_oss": Family(
        "GptOss",
        Decoder(
            Attention("attention_bias", "attention_bias", sinks=True),
            Mixture(
                "num_local_experts",
                "intermediate_size",
                router="router",
                turned=True,
                biases=True,
            ),
        ),
        settle_every_other,
    ),
    "granitemoe": Family("GraniteMoe", Decoder(_BIASED, _GRANITE, norms_first=True), settle_heads),
    "granitemoeshared": Family(
        "GraniteMoeShared", Decoder(_BIASED, _granite_shared, norms_first=True), settle_heads
    ),
    "llama4_text": Family(
        ("Llama4Text", "Llama4"),
        Decoder(
            _BIASED,
            Mixture(
                "num_local_experts",
                "intermediate_size",
                "feed_forward",
                "router",
                router_linear=True,
                router_first=False,
                turned=True,
                where=_listed,
                dense=Gated(size="intermediate_size_mlp", name="feed_forward"),
                shared=_shared_llama4,
            ),
        ),
        _settle_llama4,
    ),
    "phimoe": Family(
        "Phimoe",
        Decoder(
            _BIASED,
            Mixture("num_local_experts", "intermediate_size", router="router", router_linear=True),
            norm_bias=True,
            head_bias="lm_head_bias",
        ),
        settle_heads,
    ),
    "glm4_moe": Family(
        "Glm4Moe",
        Decoder(
            Attention("attention_bias", norms="head", norms_if="use_qk_norm"),
            _DEEPSEEK,
        ),
        settle_heads,
    ),
}
