"""What keys and values cost: by model, and as the cache grows."""

from __future__ import annotations

from typing import Any

import numpy as np

from tunemath.course.style import ACCENT, BAD, INK, MUTED, SECOND, note, panels

_MODELS = {
    "GPT-2\nmedium": (24, 16, 16, 64),
    "SmolLM2\n135M": (30, 9, 3, 64),
    "Llama 3\n8B": (32, 32, 8, 128),
    "Qwen2.5\n7B": (28, 28, 4, 128),
}
_8B = {"layers": 32, "heads": 32, "kv_heads": 8, "head_dim": 128}


def _config(values: tuple[int, ...]) -> dict[str, int]:
    return dict(zip(("layers", "heads", "kv_heads", "head_dim"), values, strict=True))


def figure(answer: dict[str, Any]) -> Any:
    """Draw with `prefix_parameters` and `cache_bytes`."""
    chart, left, right = panels("A prefix of 16, by KV heads", "The cache of an 8B model, bfloat16")
    places = np.arange(len(_MODELS))
    configs = [_config(values) for values in _MODELS.values()]
    own = [answer["prefix_parameters"](config, 16) / 1e6 for config in configs]
    wrong = [
        answer["prefix_parameters"]({**config, "kv_heads": config["heads"]}, 16) / 1e6
        for config in configs
    ]
    left.bar(places[1:], wrong[1:], color="none", edgecolor=BAD, linestyle=(0, (3, 2)))
    left.bar(places, own, color=ACCENT)
    for place, value in zip(places, own, strict=True):
        note(left, f"{value:.2f}", (place, value), INK, xytext=(0, 3), ha="center")
    note(left, "with all query heads", (2, max(wrong)), BAD, xytext=(0, 4), ha="center")
    left.set_xticks(places, list(_MODELS))
    left.set_ylabel("millions of parameters")
    left.margins(y=0.12)

    tokens = np.linspace(0, 8192, 50).astype(int)
    for batch, colour in ((16, ACCENT), (4, SECOND), (1, MUTED)):
        size = [answer["cache_bytes"](_8B, 16, int(t), batch, 2) / 2**30 for t in tokens]
        right.plot(tokens, size, color=colour)
        label = f"{batch} sequence{'s' if batch > 1 else ''}"
        note(right, label, (tokens[-8], size[-8]), colour, xytext=(-6, 4), ha="right")
    right.set(xlabel="tokens in each sequence, behind a prefix of 16", ylabel="GiB")
    return chart
