"""Keys and values before those of every layer: prefix tuning and cartridges."""

from __future__ import annotations

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Part
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.parts import linear_parts
from tunemath.space.peft.tuners.prompt_learning import encoder_change, prompt_sizes
from tunemath.space.peft.tuners.settings import whole

__all__ = ["cartridge", "prefix_tuning"]


def prefix_tuning(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return n keys and values a layer, d wide over all KV heads: ``2 L n d``.

    With a projection through h units: ``n d + (d h + h) + 2 L d (h + 1)``, which PEFT makes only
    where ``inference_mode`` is off.

    Source: Li and Liang 2021, arXiv 2101.00190.
    """
    sizes = prompt_sizes(blueprint, config, kv=True)
    n, d, h, both = sizes.tokens, sizes.width, sizes.hidden, 2 * sizes.layers * sizes.width
    if not config["prefix_projection"] or config["inference_mode"]:
        prefix = Part("embedding.weight", (n, both))
        return encoder_change(blueprint, config, (prefix,), both * n)
    parts = (
        Part("embedding.weight", (n, d)),
        *linear_parts("transform.0", d, h),
        *linear_parts("transform.2", h, both),
    )
    return encoder_change(blueprint, config, parts, n * d + (d * h + h) + both * (h + 1))


def cartridge(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return a prefix whose first f tokens are frozen: ``2 L (n - f) d``.

    Source: Eyuboglu et al. 2025, arXiv 2506.06266.
    """
    sizes = prompt_sizes(blueprint, config, kv=True)
    frozen = whole(config, "num_frozen_tokens", least=0)
    if frozen > sizes.tokens:
        raise ModelError(
            f"CARTRIDGE: num_frozen_tokens is {frozen} of num_virtual_tokens {sizes.tokens}; "
            "set it to no more than there are"
        )
    both, learned = 2 * sizes.layers * sizes.width, sizes.tokens - frozen
    parts = (
        Part("frozen_embedding", (frozen, both), trainable=False),
        Part("trainable_embedding", (learned, both)),
    )
    return encoder_change(blueprint, config, parts[frozen == 0 :], both * learned)
