"""X-LoRA: trained LoRA adapters as frozen experts, and a classifier that weighs them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Change, Group, Part, Shared, frozen
from tunemath.space.peft.config import AdapterConfig, refuse_lost_layers
from tunemath.space.peft.mixtures import of_fused_experts
from tunemath.space.peft.parameters import find_parameters
from tunemath.space.peft.tuners.lora import lora
from tunemath.space.peft.tuners.parts import linear_parts
from tunemath.space.peft.tuners.settings import whole

__all__ = ["xlora"]


def xlora(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return the experts' factors, frozen, and the classifier of h inputs and n outputs.

    Let h be ``hidden_size``, s ``xlora_size``, d ``xlora_depth``; n is the number of adapters,
    times that of adapted layers with ``layerwise_scalings``. The classifier is ``(h + 1) n`` where
    d is 1, otherwise ``(h + 1) s + (d - 2) (s + 1) s + (s + 1) n``.

    ``adapters`` are folders of LoRA adapters, whose adapter_config.json are read.

    Source: Buehler and Buehler 2024, arXiv 2402.07148.
    """
    model = blueprint.config
    # A configuration with words has it on unless it says otherwise.
    if model.get("use_cache", "vocab_size" in model):
        raise ModelError(
            "XLORA: PEFT refuses a model with use_cache, which is on unless its config.json says "
            "otherwise; set use_cache to false there"
        )
    adapters = config["adapters"] or {}
    if not isinstance(adapters, Mapping):
        raise ModelError(f"XLORA: adapters is {adapters!r}; give a mapping from names to folders")
    experts = [_expert(blueprint, path) for path in adapters.values()]
    weighed = {name for expert in experts for name in expert.weighed}
    # PEFT calls the adapters 0, 1, …, and trains those among the given names.
    trained = [config["use_trainable_adapters"] and str(i) in adapters for i in range(len(experts))]
    groups = [
        group if train else frozen(group)
        for expert, train in zip(experts, trained, strict=True)
        for group in expert.groups
    ]
    ignored = config["use_trainable_adapters"] and not all(trained)
    note = "PEFT 0.21.2 trains an adapter only where its name in adapters is its place: 0, 1, …"
    classes = len(experts) * (len(weighed) if config["layerwise_scalings"] else 1)
    return Change(tuple(groups), (_classifier(config, classes),), notes=(note,) if ignored else ())


class _Expert(NamedTuple):
    groups: tuple[Group, ...]
    weighed: frozenset[str]
    """The layers that the classifier weighs: no tensor that is adapted by itself."""


def _expert(blueprint: Blueprint, path: Any) -> _Expert:
    """Return what an adapter in a folder adds."""
    if not isinstance(path, str):
        raise ModelError(f"XLORA: adapters has {path!r}; give the folder of a LoRA adapter")
    config = AdapterConfig.read(path)
    if config.peft_type != "LORA":
        raise ModelError(f"XLORA: the adapter in {path} is {config.peft_type}; expected LORA")
    extra = ("modules_to_save", "trainable_token_indices", "layer_replication")
    given = [name for name in extra if config[name]]
    given += ["bias"] if config["bias"] != "none" else []
    if given:
        raise ModelError(
            f"XLORA: the adapter in {path} has {' and '.join(given)}; PEFT loads factors only: "
            "train an adapter without"
        )
    refuse_lost_layers(config)
    config = of_fused_experts(blueprint, config)
    groups = lora(blueprint, config).groups
    modules = [module for group in groups for module in group.modules]
    for module in modules:
        if not module.name.startswith("model."):
            raise ModelError(
                f"XLORA: the adapter in {path} adapts {module.name}; PEFT loads adapters only into "
                "layers whose names start with model."
            )
    alone = find_parameters(blueprint, config["target_parameters"] or ())
    layers = {module.name for module in modules if _is_weighed(module)}
    return _Expert(groups, frozenset(layers - {p.module.name for p in alone}))


def _is_weighed(module: Module) -> bool:
    """Whether the classifier weighs layers like this one."""
    if module.kind == "conv":
        return len(module.shape) == 4
    return module.kind in ("linear", "conv1d", "embedding")


def _classifier(config: AdapterConfig, classes: int) -> Shared:
    """Return the classifier: d linear layers with biases, from h to n by s."""
    h = 4096 if config["hidden_size"] is None else whole(config, "hidden_size")
    s = whole(config, "xlora_size")
    d = whole(config, "xlora_depth")
    widths = [h, *(s for _ in range(d - 1)), classes]
    parts: list[Part] = []
    apart = 3 if config["xlora_dropout_p"] > 0 else 2
    for at, (d_in, d_out) in enumerate(pairwise(widths)):
        parts += linear_parts(f"layers.{at * apart}", d_in, d_out)
    first, between = ((h + 1) * s, (d - 2) * (s + 1) * s) if d > 1 else (0, 0)
    trainable = first + between + ((s if d > 1 else h) + 1) * classes
    return Shared("base_model.internal_xlora_classifier", tuple(parts), trainable)
