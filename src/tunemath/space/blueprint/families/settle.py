"""Fields that transformers derives from others when a configuration is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunemath.space.blueprint.families.fields import MOST

__all__ = ["settle_cohere2", "settle_every_other", "settle_exaone4", "settle_gemma3",
           "settle_heads", "settle_layers", "settle_olmo3", "settle_qwen", "settle_shared_heads",
           "settle_smollm3", "settle_windows"]  # fmt: skip


def settle_heads(values: dict[str, Any]) -> None:
    """Fill in key and value heads, and the width of a head, that are null."""
    settle_shared_heads(values)
    heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
    if values.get("head_dim", heads) is None and type(heads) is int and type(hidden) is int:
        values["head_dim"] = hidden // heads if heads > 0 and hidden % heads == 0 else None


def settle_shared_heads(values: dict[str, Any]) -> None:
    """Fill in key and value heads that are null: as many as query heads."""
    if "num_key_value_heads" in values and values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values.get("num_attention_heads")


def settle_layers(
    values: dict[str, Any], kind: Callable[[int], Any], key: str = "layer_types"
) -> None:
    """Fill in what each layer is, where that is null."""
    layers = values.get("num_hidden_layers")
    if values.get(key) is None and type(layers) is int:
        values[key] = [kind(layer) for layer in range(min(layers, MOST))]


def settle_windows(values: dict[str, Any], every: Any) -> None:
    """Fill in layers that attend within a window, but every nth to all."""
    settle_heads(values)
    if type(every) is int and every > 0:
        kinds = ("full_attention", "sliding_attention")
        settle_layers(values, lambda layer: kinds[bool((layer + 1) % every)])


def settle_every_other(values: dict[str, Any]) -> None:
    """Fill in Gemma 2's and gpt-oss's layers: every other one attends within a window."""
    settle_windows(values, 2)


def settle_gemma3(values: dict[str, Any]) -> None:
    """Fill in Gemma 3's layers; a window to both sides is half as wide."""
    settle_windows(values, values.get("sliding_window_pattern", 6))
    window = values.get("sliding_window")
    if values.get("use_bidirectional_attention") and type(window) is int:
        values["sliding_window"] = window // 2 + 1


def settle_cohere2(values: dict[str, Any]) -> None:
    """Fill in Cohere 2's layers, and the width of a head, which its class does not name."""
    values.setdefault("head_dim", None)
    settle_windows(values, values.pop("sliding_window_pattern", 4))


def settle_olmo3(values: dict[str, Any]) -> None:
    """Fill in OLMo 3's layers: all but every fourth attend within a window."""
    settle_windows(values, 4)


def settle_exaone4(values: dict[str, Any]) -> None:
    """Fill in EXAONE 4's layers: all but every nth attend within a window, if there is one."""
    if values.get("sliding_window") is None:
        values["sliding_window_pattern"] = 0
    settle_windows(values, values.get("sliding_window_pattern"))


def settle_qwen(values: dict[str, Any]) -> None:
    """Qwen's window counts only where it is asked for, from a certain layer on."""
    settle_heads(values)
    if not values.get("use_sliding_window"):
        values["sliding_window"] = None
    window, first = values.get("sliding_window"), values.get("max_window_layers")
    from_layer = first if window is not None and type(first) is int else MOST
    kinds = ("full_attention", "sliding_attention")
    settle_layers(values, lambda layer: kinds[layer >= from_layer])


def settle_smollm3(values: dict[str, Any]) -> None:
    """SmolLM3 has no rotary positions in every nth layer, and a window there if asked for."""
    settle_heads(values)
    every = values.get("no_rope_layer_interval")
    if type(every) is int and every > 0:
        settle_layers(values, lambda layer: int((layer + 1) % every != 0), "no_rope_layers")
    rotary = values.get("no_rope_layers")
    window = values.get("use_sliding_window") and values.get("sliding_window") is not None
    kinds = ("full_attention", "sliding_attention")
    if isinstance(rotary, list) and len(rotary) == values.get("num_hidden_layers"):
        settle_layers(values, lambda layer: kinds[bool(window and not rotary[layer])])
