"""A model's layers, and what their output goes through after them, by the modules' names."""

from __future__ import annotations

from collections import Counter
from itertools import takewhile

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module

__all__ = ["after_layers", "heads_of", "layers_of", "place_of"]

# The modules at the root of a model that a task's class puts on it.
_CLASSIFIERS = ("score", "classifier", "qa_outputs", "classification_head", "logits_proj",
                "cls_classifier", "distillation_classifier")  # fmt: skip
# What the layers' output goes through, though OPT registers it before them; and LFM2's final norm.
_EXITS = ("final", "project_out", "embedding_norm")
# What lies before the layers, though it may be registered after them.
_ENTRANCES = ("embed", "per_layer", "project_in")


def place_of(name: str) -> tuple[str, int] | None:
    """Return the stack and the layer that a module lies in: the first number in its name.

    >>> place_of("model.layers.3.self_attn.q_proj")
    ('model.layers', 3)
    """
    parts = name.split(".")
    at = next((place for place, part in enumerate(parts) if part.isdecimal()), None)
    return None if at is None else (".".join(parts[:at]), int(parts[at]))


def layers_of(blueprint: Blueprint) -> tuple[str, tuple[str, ...]]:
    """Return the stack of layers that gives the output, and its layers' names in order.

    Of the stacks whose names share the most with the input embedding's it is the decoder's, or
    else the one with the most parameters: no tower for images, and none of the small projections
    that some models number too. Raises `ModelError` where no module's name has a number.
    """
    sizes: Counter[str] = Counter()
    numbers: dict[str, set[int]] = {}
    for module in blueprint.modules:
        place = place_of(module.name)
        if place is not None:
            sizes[place[0]] += module.parameters
            numbers.setdefault(place[0], set()).add(place[1])
    if not sizes:
        raise ModelError(
            f"this {blueprint.model_type or 'model'} has no numbered layers, such as model.layers.0"
        )
    near = {stack: len(_shared(stack, blueprint.embedding)) for stack in sizes}
    nearest = [stack for stack in sizes if near[stack] == max(near.values())]
    decoders = [stack for stack in nearest if "decoder" in stack.split(".")]
    stack = max(decoders or nearest, key=lambda name: sizes[name])
    return stack, tuple(f"{_inside(stack)}{number}" for number in sorted(numbers[stack]))


def after_layers(blueprint: Blueprint) -> tuple[Module, ...]:
    """Return what the output of the last layer goes through: the final norm, a classifier.

    That is what follows the layers in the same body (``model.``), a classifier at the root, and
    what lies beside the output layer. A language model's output layer itself is left out.
    """
    stack, _ = layers_of(blueprint)
    body = _body(stack, blueprint.embedding)
    outside = {*_CLASSIFIERS, blueprint.head.partition(".")[0]} - {"", body.partition(".")[0]}
    found, passed = [], False
    for module in blueprint.modules:
        place = place_of(module.name)
        passed = passed or (place is not None and place[0] == stack)
        if module.name == blueprint.head:
            continue
        if module.name.partition(".")[0] in outside:
            found.append(module)
        elif place is None and module.name.startswith(_inside(body)):
            leaves = passed or _is_beside(blueprint, module, stack)
            if _is_exit(module, stack) or (leaves and not _enters(module, body)):
                found.append(module)
    return tuple(found)


def heads_of(blueprint: Blueprint) -> tuple[Module, ...]:
    """Return the output layer: a language model's, else a classifier."""
    if blueprint.head:
        return (blueprint.by_name[blueprint.head],)
    return tuple(module for name in _CLASSIFIERS for module in blueprint.under(name))


def _body(stack: str, embedding: str) -> str:
    """Return the part of a model whose layers these are: a decoder, or what holds the embedding."""
    *around, _ = stack.split(".")
    if "decoder" in around:
        return ".".join(around)
    shared = _shared(stack, embedding) if embedding else around[:1]
    return ".".join(shared[: len(around)])


def _shared(stack: str, embedding: str) -> list[str]:
    """Return the parts with which both names begin."""
    pairs = zip(stack.split("."), embedding.split("."), strict=False)
    return [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]


def _inside(name: str) -> str:
    """Return what the names of all that lies inside begin with; empty for the whole model."""
    return f"{name}." if name else ""


def _is_exit(module: Module, stack: str) -> bool:
    beside = _inside(stack.rpartition(".")[0])
    name = module.name.removeprefix(beside)
    return module.name.startswith(beside) and name.startswith(_EXITS)


def _is_beside(blueprint: Blueprint, module: Module, stack: str) -> bool:
    """Whether it is a norm beside the layers; where names alone are known they tell no order."""
    parent = stack.rpartition(".")[0]
    norm = module.kind == "norm" and module.name.rpartition(".")[0] == parent
    return norm and not blueprint.architecture


def _enters(module: Module, body: str) -> bool:
    inner = module.name.removeprefix(_inside(body))
    return module.kind == "embedding" or any(
        word in part for part in inner.split(".") for word in _ENTRANCES
    )
