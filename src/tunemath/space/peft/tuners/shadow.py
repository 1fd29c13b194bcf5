"""ShadowPEFT: a small network of the model's own kind runs beside it and corrects every block."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.blueprint.config import blueprint_of_config
from tunemath.space.peft.change import Change, Part, Shared
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.match import find_targets
from tunemath.space.peft.tuners.parts import linear_parts
from tunemath.space.peft.tuners.settings import one_of, whole

__all__ = ["shadow"]

_STACKS = ("layers", "h", "single_transformer_blocks", "transformer_blocks")

# Each size that can be set, and the names of it in a model's configuration, in PEFT's order.
_SIZES = {
    "shadow_num_hidden_layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers",
                                 "encoder_layers"),
    "shadow_hidden_size": ("hidden_size", "n_embd", "d_model"),
    "shadow_intermediate_size": ("intermediate_size", "ffn_dim", "n_inner"),
    "shadow_num_attention_heads": ("num_attention_heads", "n_head", "num_heads",
                                   "encoder_attention_heads"),
}  # fmt: skip

# The method is for decoders. Of the families whose blocks lie elsewhere, these were seen to be
# copied whole, and the bare model of those has a pooler, which their task models may leave out.
_WHOLE = ("convbert", "deberta", "deberta-v2", "dinov2", "electra", "mpt", "mt5",
          "t5", "umt5", "whisper", "xlnet")  # fmt: skip
_POOLED = ("albert", "bert", "big_bird", "camembert", "data2vec-text", "deit", "ernie", "ibert",
           "luke", "megatron-bert", "mobilebert", "mpnet", "rembert", "roberta",
           "roberta-prelayernorm", "roc_bert", "vit", "xlm-roberta", "xlm-roberta-xl",
           "xmod")  # fmt: skip

# Families whose configuration derives the kinds of its layers, which PEFT tries to set.
_DERIVED = ("falcon_mamba", "jamba", "mamba", "mamba2")


def shadow(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return each block's correction and the network that starts them.

    A block has ``2 r D + 2 (2 D u + u + D)``, u being ``update_hidden_size``, or r. The network is
    the model's own body with fewer layers (one), less its embeddings where it shares the model's.

    Source: Li et al. 2026, arXiv 2604.19254.
    """
    one_of(config, "shadow_model", ("mirror",))
    r, d = whole(config, "r"), blueprint.hidden
    given = config["update_hidden_size"]
    u = r if given is None else whole(config, "update_hidden_size", least=0) or r
    update = tuple(
        part
        for name in ("shadow_update_transform", "shadow_update_gate")
        for part in (*linear_parts(f"{name}.0", d, u), *linear_parts(f"{name}.2", u, d))
    )
    parts = (Part("shadow_down.weight", (r, d)), Part("shadow_up.weight", (d, r)), *update)
    block = 2 * r * d + 2 * (2 * d * u + u + d)
    shared = [Shared(name, parts, block) for name in _blocks(blueprint, config)]
    network, notes = _network(blueprint, config)
    return Change(shared=(*shared, *network, *_head(blueprint, config)), notes=notes)


def _blocks(blueprint: Blueprint, config: AdapterConfig) -> list[str]:
    """Return the blocks' names: those asked for, or every block of the body."""
    if config["target_modules"] is None:
        body = _body(blueprint)
        stack = _stack(blueprint, body)
        if stack is None:
            raise ModelError(
                f"SHADOW finds no stack of blocks in this {blueprint.architecture}: PEFT looks for "
                "layers or h in its body; set target_modules to the blocks' names"
            )
        start = re.compile(re.escape(_join(body, stack)) + r"\.\d+")
        blocks = [name for name in blueprint.containers if start.fullmatch(name)]
        config = config.having(target_modules=blocks)
    targets = find_targets(blueprint, config)
    found = [*dict.fromkeys((*targets.containers, *(m.name for m in targets.modules)))]
    if not found:
        raise ModelError(
            f"SHADOW: target_modules {targets.asked!r} means no block of this model; set it to the "
            "blocks' names, or leave it out"
        )
    return found


def _body(blueprint: Blueprint) -> str:
    """Return the name of the module that PEFT takes for the model's body; empty for all of it."""
    top = [name for name in blueprint.containers if "." not in name]
    body = next((name for name in ("model", "transformer") if name in top), "")
    bare = blueprint.architecture.endswith("Model") or {"encoder", "decoder"} & {*top}
    if not body and not bare:
        # A task model holds the bare model, which is most of it, under a name of its family's.
        body = max(top, key=lambda name: _count([*blueprint.under(name)]), default="")
    decoder = _join(body, "decoder")
    return decoder if _stack(blueprint, decoder) else body


def _stack(blueprint: Blueprint, body: str) -> str | None:
    """Return the name of the list of blocks in a body, among those that PEFT knows."""
    return next((s for s in _STACKS if _join(body, s, "0") in blueprint.containers), None)


def _network(blueprint: Blueprint, config: AdapterConfig) -> tuple[list[Shared], tuple[str, ...]]:
    """Return the network, and what leads from its width to the model's."""
    body, d = _body(blueprint), blueprint.hidden
    if not _stack(blueprint, body) and blueprint.model_type not in (*_WHOLE, *_POOLED):
        raise ModelError(
            f"SHADOW is for decoders, and what PEFT's copy of model type {blueprint.model_type!r} "
            "would hold is not known here; take another tuner type"
        )
    width = config["shadow_hidden_size"] or d
    sharing = config["share_embeddings"] and width == d
    layers = config["shadow_num_hidden_layers"] or 1
    two = "encoder_layers" in blueprint.config or blueprint.config.get("is_encoder_decoder")
    every = [*_inside(_resized(blueprint, config), body)]
    kept: list[Module] = []
    left_out: list[Module] = []
    for module in every:
        # Of an encoder-decoder, PEFT shortens the encoder alone.
        fixed = two and "decoder" in _join(body, module.name).split(".")
        cut = _layer(module.name) >= layers and not fixed
        shared = sharing and module.name == "embed_tokens"
        (left_out if cut or shared else kept).append(module)
    added = [*_pooler(blueprint, every, width)]
    parts = (Part(_join(m.name, key), shape) for m in (*kept, *added) for key, shape in m.tensors)
    trainable = _count(every) + _count(added) - _count(left_out)
    network = [Shared("shadow_backbone", tuple(parts), trainable)]
    if width != d:
        network.append(Shared("shadow_projection", (Part("weight", (d, width)),), d * width))
    unused = (
        f"PEFT keeps the shadow network's own {m.name} ({m.parameters} parameters) trainable, "
        "though the model's embeddings are used in their place"
        for m in kept
        if m.kind == "embedding" and _join(body, m.name) == blueprint.embedding
    )
    return network, tuple(unused) if sharing and not two else ()


def _resized(blueprint: Blueprint, config: AdapterConfig) -> Blueprint:
    """Return the model with the sizes of the shadow network, as far as they aren't its own."""
    if blueprint.model_type in _DERIVED:
        raise ModelError(
            f"SHADOW cannot be had for model type {blueprint.model_type!r}: its configuration "
            "derives layer_types, which PEFT tries to set; take another tuner type"
        )
    sizes = {key: whole(config, key) for key in _SIZES if config[key] is not None}
    sizes = {"shadow_num_hidden_layers": 1, **sizes}
    model = dict(blueprint.config)
    for key, value in sizes.items():
        name = next((name for name in _SIZES[key] if name in model), None)
        if name is None:
            raise ModelError(
                f"SHADOW: {key} is {value}, for which PEFT sets {' or '.join(_SIZES[key])} in the "
                f"configuration of a smaller {blueprint.model_type or 'model'}; it has none of them"
            )
        model[name] = value
    types, layers = model.get("layer_types"), sizes["shadow_num_hidden_layers"]
    if types:
        model["layer_types"] = [*types, *types[-1:] * layers][:layers]
    if len(sizes) == 1 and layers <= blueprint.layers:
        return blueprint
    found = blueprint_of_config({**model, "architectures": [blueprint.architecture]})
    if found is None:
        raise ModelError(
            f"SHADOW with {', '.join(sizes)}: the shapes of a smaller {blueprint.model_type} are "
            "not known here; leave the sizes out, or take a family that is"
        )
    return found


def _inside(blueprint: Blueprint, body: str) -> Iterator[Module]:
    """Yield the body's modules by their names within it, without what is tied to another there."""
    modules = list(blueprint.under(body) if body else blueprint.modules)
    held = {_join(m.name, key) for m in modules for key, _ in m.tensors}
    for module in modules:
        tensors = tuple(
            (key, shape)
            for key, shape in module.tensors
            if blueprint.tied.get(_join(module.name, key)) not in held
        )
        if tensors:
            name = module.name.removeprefix(body).removeprefix(".")
            yield module._replace(name=name, tensors=tensors)


def _layer(name: str) -> int:
    """Return the layer that a module lies in, -1 outside of the layers."""
    number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return int(number.group(1)) if number else -1


def _pooler(blueprint: Blueprint, body: Sequence[Module], width: int) -> Iterator[Module]:
    """Yield the pooler that PEFT's network has though the model has none."""
    if blueprint.model_type in _POOLED and not any(m.name.startswith("pooler") for m in body):
        out = blueprint.config.get("pooler_output_size") or width
        yield Module("pooler.dense", "linear", (("weight", (out, width)), ("bias", (out,))))


def _head(blueprint: Blueprint, config: AdapterConfig) -> Iterator[Shared]:
    """Yield the network's own copy of a classifier's head."""
    if config["task_type"] != "SEQ_CLS":
        return
    for name in ("score", "classifier"):
        head = list(blueprint.under(name))
        if head:
            parts = (Part(_join(m.name, key), shape) for m in head for key, shape in m.tensors)
            yield Shared("shadow_head", tuple(parts), _count(head))
            return


def _count(modules: Sequence[Module]) -> int:
    return sum(module.parameters for module in modules)


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)
