"""LLaMA-Adapter: prompts with a gate in the attention of the top layers."""

from __future__ import annotations

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint
from tunemath.space.peft.change import Change, Part, Shared
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.refused import refuse_new_heads
from tunemath.space.peft.tuners.settings import whole

__all__ = ["adaption_prompt"]

# Of each model type that PEFT knows: its attention's name, and a projection inside by which
# PEFT's wrapper knows it.
_ATTENTION = {
    "llama": ("self_attn", "q_proj"),
    "mistral": ("self_attn", "q_proj"),
    "gpt2": ("attn", "c_attn"),
}


def adaption_prompt(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return n prompt tokens and a gate for each of the top attentions: ``n D + 1`` each.

    Source: Zhang et al. 2023, arXiv 2303.16199.
    """
    refuse_new_heads(config)
    if blueprint.model_type not in _ATTENTION:
        raise ModelError(
            f"ADAPTION_PROMPT does not know model type {blueprint.model_type!r}; PEFT has it for "
            f"{', '.join(_ATTENTION)} only"
        )
    default, projection = _ATTENTION[blueprint.model_type]
    n, layers = whole(config, "adapter_len"), whole(config, "adapter_layers")
    wanted = config["target_modules"] or default
    names = dict.fromkeys((*blueprint.containers, *blueprint.by_name))
    found = [name for name in names if name.endswith(f".{wanted}")]
    if len(found) < layers:
        raise ModelError(
            f"ADAPTION_PROMPT: adapter_layers is {layers}, and the model has {len(found)} modules "
            f"named {wanted!r}; ask for no more layers than there are"
        )
    top = found[-layers:]
    for name in top:
        if f"{name}.{projection}" not in blueprint.by_name:
            raise ModelError(
                f"ADAPTION_PROMPT: target_modules {wanted!r} means {name}, which is no attention "
                f"(it has no {projection}); PEFT's is {default!r}"
            )
    d = blueprint.hidden
    parts = (Part("adaption_prompt", (1, n, d)), Part("adaption_gate", (1,)))
    return Change(shared=tuple(Shared(name, parts, n * d + 1) for name in top))
