"""Modules from the weights' names and shapes alone, where no configuration says what they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from tunemath.space.blueprint.quantised import Weight
from tunemath.space.blueprint.record import Blueprint, Kind, Module

__all__ = ["blueprint_of_weights"]

_MADE = ".parametrizations.weight"
Shapes = Mapping[str, tuple[int, ...]]

_EMBEDDING = re.compile(
    r"(.*_)?embeddings?|embed_(tokens|positions|in)(_per_layer)?|wte|wpe|shared"
    r"|(tokens|positions)_embed|relative_attention_bias"
)
_CONV1D = frozenset(("c_attn", "c_proj", "c_fc", "q_attn"))
# Where a layer's own parameters stand in the live module; others follow by name.
_ORDER = {
    key: place
    for place, key in enumerate(
        ("weight", "bias", "in_proj_weight", "in_proj_bias", "gate_up_proj", "gate_up_proj_bias",
         "up_proj", "down_proj", "down_proj_bias")
    )
}  # fmt: skip
_INPUT = ("shared", "embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings",
          "tokens_embed", "embeddings")  # fmt: skip
_HEADS = ("lm_head", "proj_out", "lm_head.decoder", "cls.predictions.decoder",
          "predictions.decoder", "vocab_projector", "generator_lm_head", "decoder")  # fmt: skip
_OTHER_HEAD = re.compile(
    r"(^|\.)(score|classifier|classification_head|qa_outputs|pooler|discriminator_predictions)(\.|$)"
)


def blueprint_of_weights(weights: Mapping[str, Weight]) -> Blueprint:
    """Return the blueprint that names and shapes alone tell; it has no configuration.

    ``weights`` have live names. What a file leaves out because it is tied to the embedding is
    added: a language model's head, the embeddings of an encoder and a decoder that share one.
    """
    weights = _with_prefix(weights)
    modules = {module.name: module for module in _modules(weights)}
    embedding = _input(modules)
    if not embedding:
        return Blueprint("", "", tuple(modules.values()), embedding=_patches(modules))
    tied: dict[str, str] = {}
    for module, ties in _left_out(modules, modules[embedding]):
        modules[module.name] = module
        tied |= ties
    head = next((name for name in _HEADS if name in modules and modules[name].shape[1:]), "")
    return Blueprint("", "", tuple(modules.values()), tied=tied, embedding=embedding, head=head)


def _with_prefix(weights: Mapping[str, Weight]) -> Mapping[str, Weight]:
    """GPT-2's and BLOOM's own checkpoints leave out the prefix that the language model has."""
    if not any(re.match(r"h\.\d+\.", name) for name in weights):
        return weights
    outside = {"lm_head", "score", "classifier", "qa_outputs", "transformer"}
    return {
        name if name.partition(".")[0] in outside else f"transformer.{name}": weight
        for name, weight in weights.items()
    }


def _input(modules: Mapping[str, Module]) -> str:
    """Return the module that tokens enter by."""
    for short in _INPUT:
        for module in modules.values():
            if module.short_name == short and module.kind == "embedding":
                return module.name
    return ""


def _patches(modules: Mapping[str, Module]) -> str:
    """Return the module that an image enters by."""
    end = ".embeddings.patch_embeddings.projection"
    found = next((name for name in modules if f".{name}".endswith(end)), "")
    return found.removesuffix(".projection")


def _left_out(
    modules: Mapping[str, Module], embedding: Module
) -> Iterator[tuple[Module, dict[str, str]]]:
    """Yield the modules that share the embedding's weight, each with what is tied to what."""
    shared = ("weight", embedding.shape)
    weight = f"{embedding.name}.weight"
    if embedding.short_name == "shared":
        root = embedding.name.removesuffix("shared")
        for stack in (f"{root}encoder.", f"{root}decoder."):
            name = f"{stack}embed_tokens"
            if name not in modules and any(each.startswith(stack) for each in modules):
                yield Module(name, "embedding", (shared,)), {f"{name}.weight": weight}
    bias = ("bias", embedding.shape[:1])
    for name in [name for name, module in modules.items() if module.tensors == (bias,)]:
        short = name.rpartition(".")[2]
        if name in ("vocab_projector", "generator_lm_head", "decoder"):
            yield Module(name, "linear", (shared, bias)), {f"{name}.weight": weight}
        elif short in ("predictions", "lm_head"):
            head = f"{name}.decoder"
            ties = {f"{head}.weight": weight, f"{head}.bias": f"{name}.bias"}
            yield Module(head, "linear", (shared, bias)), ties
    name = _plain_head(modules, embedding.name)
    if name:
        yield Module(name, "linear", (shared,)), {f"{name}.weight": weight}


def _plain_head(modules: Mapping[str, Module], embedding: str) -> str:
    """Return the name of the head that a language model without one in its file has.

    Base models have none: their embedding lies at the root, or in a stack at the root.
    """
    if any(name in _HEADS or _OTHER_HEAD.search(name) for name in modules):
        return ""
    if "model.encoder.conv1" in modules:
        return "proj_out"
    if embedding == "shared":
        return "lm_head" if any(name.startswith("decoder.block.") for name in modules) else ""
    root, _, inside = embedding.partition(".")
    base = not inside or root in ("decoder", "language_model", "embeddings", "text_model")
    return "" if base or ".embeddings." in embedding else "lm_head"


def _modules(weights: Mapping[str, Weight]) -> list[Module]:
    """Return the modules, layer 2 before layer 10."""
    own: dict[str, dict[str, tuple[int, ...]]] = {}
    for full, weight in weights.items():
        name, _, key = full.rpartition(".")
        own.setdefault(name, {})[key] = weight.shape
    for name in [name for name, shapes in own.items() if "original1" in shapes]:
        own.setdefault(name.removesuffix(_MADE), {})  # without a bias it owns nothing itself
    transposed = any(_is_transposed(name, shapes) for name, shapes in own.items())
    found = []
    for name in sorted(own, key=_natural):
        shapes = own[name]
        # torch's weight norm makes a weight from its lengths and a tensor of its own shape.
        made = own.get(name + _MADE, {}).get("original1")
        kind = _kind(name, {"weight": made, **shapes} if made else shapes, own.keys(), transposed)
        tensors = sorted(shapes.items(), key=lambda item: (_ORDER.get(item[0], 9), item[0]))
        groups = None if kind == "conv" and _is_narrow(made or shapes["weight"]) else 1
        found.append(Module(name, kind, tuple(tensors), made, groups))
    return found


def _is_narrow(weight: tuple[int, ...]) -> bool:
    """Whether each filter has one input: over a single channel, or depthwise."""
    return weight[1:2] == (1,) and weight[0] > 1


def _is_transposed(name: str, shapes: Shapes) -> bool:
    """Whether a fused projection is GPT-2's Conv1D: its bias is as long as the weight is wide."""
    weight, bias = shapes.get("weight", ()), shapes.get("bias", ())
    return name.endswith(".c_attn") and bias == weight[1:] != weight[:1]


def _kind(name: str, shapes: Shapes, names: Collection[str], transposed: bool) -> Kind:
    short = name.rpartition(".")[2]
    weight = shapes.get("weight")
    if weight is None:
        if "in_proj_weight" in shapes:
            return "attention"
        if "experts" in short and any(len(shape) == 3 for shape in shapes.values()):
            return "experts"
        return "other"
    if len(weight) == 1:
        return "norm"
    if len(weight) != 2:
        return "experts" if short in ("input_linear", "output_linear") else "conv"
    if "bias" not in shapes and _EMBEDDING.fullmatch(short):
        return "embedding"
    if transposed and short in _CONV1D:
        return "conv1d"
    return "other" if _is_router(name, shapes, names) else "linear"


def _is_router(name: str, shapes: Shapes, names: Collection[str]) -> bool:
    """Whether it is a mixture's router, which transformers holds as a bare parameter.

    Llama 4's, which has a shared expert beside it, and Phi-3.5-MoE's are linear layers.
    """
    block, _, short = name.rpartition(".")
    if short not in ("gate", "router") or f"{block}.experts" not in names:
        return False
    llama4 = f"{block}.shared_expert.up_proj" in names
    phimoe = block.endswith(".mlp") and "bias" not in shapes
    return not (short == "router" and (llama4 or phimoe))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort by the numbers in a name; a number too long to count layers is text."""
    return [
        (int(part), "") if part.isdecimal() and len(part) < 10 else (-1, part)
        for part in name.split(".")
    ]
