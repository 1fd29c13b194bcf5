"""LoRA's variants and initialisations: what each adds, freezes or makes smaller, and refuses.

DoRA (arXiv 2402.09353) adds a magnitude of each output; KaSA (arXiv 2412.06071) r singular values;
MonteCLoRA r variances and the weights of its samples. MiCA (arXiv 2604.01694) freezes B. BD-LoRA
makes A or B block-diagonal: b blocks hold a b-th of its numbers. aLoRA and VeLoRA add nothing
that is trained or counted.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Part
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.nested import refuse_nested
from tunemath.space.peft.tuners.factors import widths

__all__ = [
    "Blocks",
    "added_parts",
    "block_diagonal",
    "fitted_rank",
    "refuse_settings",
    "refuse_start",
    "variant_of",
]

# The variants that PEFT knows, by the field that asks for them, and the kinds that take them.
_VARIANTS: dict[str, tuple[str, ...]] = {
    "alora_invocation_tokens": ("linear", "conv1d"),
    "kasa_config": ("linear",),
    "mica": ("linear", "conv1d", "embedding"),
    "monteclora_config": ("linear", "conv1d"),
    "use_bdlora": ("linear", "conv1d"),
    "use_dora": ("linear", "conv1d", "embedding", "conv"),
    "velora_config": ("linear", "conv1d"),
}
# On quantised layers PEFT refuses these, or leaves them out without a word.
_NOT_QUANTISED = ("kasa_config", "mica", "monteclora_config", "use_bdlora", "velora_config")
_NO_DORA = ("aqlm", "awq", "eetq", "gptq")
# The variants with settings of their own.
_WITH_SETTINGS = ("kasa_config", "monteclora_config", "use_bdlora", "velora_config")
# The initialisations that each kind of layer takes, besides true and false.
_STARTS = {
    "linear": r"(?i:gaussian|olora|mica)|eva|loftq|orthogonal|lora_ga|pissa(_niter_\d+)?|corda.*",
    "conv1d": r"(?i:gaussian|olora|mica)|eva|loftq|orthogonal|lora_ga|pissa(_niter_\d+)?|corda.*",
    "embedding": r"(?!loftq$).*",
    "conv": r"(?i:gaussian)|lora_ga",
    "attention": r"(?i:gaussian)|eva",
    "experts": r"(?i:gaussian)|eva",
}


def refuse_settings(config: AdapterConfig) -> None:
    """Raise for settings that PEFT refuses together, whatever the model; AdaLoRA has them too."""
    kind, start = config.peft_type, config["init_lora_weights"]
    refuse_nested(kind, config)
    if config["lora_bias"] and (config["use_dora"] or not isinstance(start, bool)):
        raise ModelError(
            f"{kind}: lora_bias goes with neither DoRA nor init_lora_weights {start!r}; turn "
            "use_dora off and set init_lora_weights to true"
        )
    if config["use_dora"] and config["megatron_config"]:
        raise ModelError(f"{kind}: use_dora does not go with megatron_config; leave one out")
    if start == "loftq" and not config["loftq_config"]:
        raise ModelError(f"{kind}: init_lora_weights is loftq; give loftq_config too")


def variant_of(blueprint: Blueprint, config: AdapterConfig) -> str:
    """Return the variant that a configuration asks for, by its field; empty for plain LoRA.

    Raises `ModelError` for two of them at once and for settings that no layer takes.
    """
    asked = [name for name in ("alora_invocation_tokens", "use_dora") if config[name]]
    asked += [name for name in _WITH_SETTINGS if config[name] is not None]
    if config["init_lora_weights"] == "mica":
        asked.append("mica")
    if len(asked) > 1:
        raise ModelError(
            f"LORA has {' and '.join(asked)}, variants that PEFT does not combine; keep one"
        )
    if config["arrow_config"] is not None:
        raise ModelError(
            "LORA: arrow_config routes between adapters that are loaded beside it; PEFT sets it up "
            "by create_arrow_model only: count one of the adapters"
        )
    variant = asked[0] if asked else ""
    form = blueprint.quantisation
    if (form and variant in _NOT_QUANTISED) or (variant == "use_dora" and form in _NO_DORA):
        raise ModelError(
            f"LORA has {variant}, which PEFT does not apply to layers quantised as {form}; leave "
            "it out, or take the model as it was"
        )
    return variant


def refuse_start(config: AdapterConfig, variant: str, module: Module, r: int) -> None:
    """Raise where a layer takes no such variant or initialisation."""
    if variant and module.kind not in _VARIANTS[variant]:
        raise _refused(module, f"{variant} is set", f"{', '.join(_VARIANTS[variant])} take it")
    start = config["init_lora_weights"]
    smaller = min(module.d_in, module.d_out)
    if r > {"mica": smaller, "kasa_config": smaller - 1}.get(variant, r):
        raise _refused(module, f"{variant} is set and r is {r}", f"set r below {smaller}")
    if start and start is not True and not re.fullmatch(_STARTS[module.kind], str(start)):
        raise _refused(module, f"init_lora_weights is {start!r}", "set it to true")
    # PEFT has these starts the wrong way round for Conv1D; DoRA needs the sum with the weight.
    turned = module.kind == "conv1d" and re.fullmatch(r"loftq|(?i:olora)", str(start))
    if variant == "use_dora" and turned and module.d_in != module.d_out:
        raise _refused(module, f"use_dora is on, init_lora_weights is {start}", "set it to true")
    if start == "orthogonal" and r % 2 and module.kind != "embedding":
        raise _refused(module, f"init_lora_weights is orthogonal and r is {r}", "set r to be even")


def fitted_rank(config: AdapterConfig, module: Module, r: int) -> int:
    """Return the rank that a layer gets; starts from its own matrix have no more than that has."""
    start = config["init_lora_weights"]
    own = isinstance(start, str) and re.fullmatch(r"pissa.*|loftq|(?i:olora)", start)
    return min(r, module.d_in, module.d_out) if own and module.kind in ("linear", "conv1d") else r


class Blocks(NamedTuple):
    """Which factor of BD-LoRA is block-diagonal, and of how many blocks; none of plain LoRA."""

    side: str = ""
    number: int = 1


def block_diagonal(config: AdapterConfig, module: Module, r: int) -> Blocks:
    """Return which of a layer's factors BD-LoRA makes block-diagonal, by parts of its name."""
    settings: Any = config["use_bdlora"]
    sides = [
        side
        for side in "ab"
        if any(name in module.name for name in settings.get(f"target_modules_bd_{side}") or ())
    ]
    if len(sides) == 2 or (not sides and settings.get("match_strict", True)):
        raise _refused(
            module,
            f"it is in {'both' if sides else 'neither'} of target_modules_bd_a and _bd_b",
            "name it in one of them",
        )
    if not sides:
        return Blocks()
    count = settings.get("nblocks", 1)
    wide = module.d_in if sides == ["a"] else module.d_out
    if module.kind != "linear" or wide % count or r % count:
        raise _refused(
            module,
            f"use_bdlora has nblocks {count}, r is {r}",
            f"take linear layers, and an nblocks that divides r and {wide}",
        )
    return Blocks(sides[0], count)


def added_parts(
    config: AdapterConfig, variant: str, module: Module, r: int
) -> tuple[tuple[Part, ...], int]:
    """Return what a variant adds to a layer's factors, and its closed form."""
    if variant == "use_dora":
        d_out = widths(config, module).d_out
        return (Part("lora_magnitude_vector.weight", (d_out,)),), d_out
    if variant == "kasa_config":
        return (Part("lora_diag", (r,)),), r
    if variant == "monteclora_config":
        samples = config[variant].get("num_samples", 8)
        sampler = "lora_monteclora_sampler"
        parts = (
            Part(f"{sampler}.std_prior", (r,)),
            Part(f"{sampler}.expert_weights_prior", (samples,)),
        )
        return parts, r + samples
    return (), 0


def _refused(module: Module, given: str, fix: str) -> ModelError:
    return ModelError(
        f"LORA: {given}, and {module.name} is a layer of kind {module.kind}, {module.d_in} to "
        f"{module.d_out}: {fix}"
    )
