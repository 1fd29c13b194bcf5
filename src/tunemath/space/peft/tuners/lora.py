"""LoRA, ``W + s·B A``, with everything that PEFT's configuration can say."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from math import prod
from operator import itemgetter
from typing import Any

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.match import find_targets, require_kinds
from tunemath.space.peft.names import pattern_values
from tunemath.space.peft.parameters import TargetParameter, find_parameters
from tunemath.space.peft.tuners.factors import widths
from tunemath.space.peft.tuners.lora_variants import (
    Blocks,
    added_parts,
    block_diagonal,
    fitted_rank,
    refuse_settings,
    refuse_start,
    variant_of,
)
from tunemath.space.peft.tuners.settings import whole
from tunemath.space.peft.tuners.targets import patterns_of
from tunemath.space.peft.tying import with_tied_targets

__all__ = ["lora"]

_KINDS = ("linear", "conv1d", "embedding", "conv", "attention")
_alike = itemgetter(slice(1, None))  # all of a module but its name


def lora(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return LoRA's factors: A (r, d_in) and B (d_out, r), ``r (d_in + d_out)`` a layer.

    Of an embedding d_in is the number of rows; of a convolution A is (r, d_in, *kernel), and where
    its channels fall into g groups B is (d_out, r / g). Torch's attention has two layers, the
    projection to queries, keys and values and that of the output. A tensor of E experts has E pairs
    of factors. Alpha, rsLoRA and dropout change no count; what variants change is said in
    ``lora_variants``.

    Source: Hu et al. 2021, arXiv 2106.09685.
    """
    refuse_settings(config)
    variant = variant_of(blueprint, config)
    parameters = find_parameters(blueprint, config["target_parameters"] or ())
    config, tied = with_tied_targets(blueprint, config)
    targets = find_targets(blueprint, config)
    modules: tuple[Module, ...] = ()
    if targets.modules or targets.containers or not parameters:
        modules = require_kinds(targets, config, _KINDS)
    modules, followed = _with_tied(blueprint, modules, tied)
    groups = [*_layers(blueprint, config, variant, modules, followed)]
    groups += _parameters(blueprint, config, variant, parameters, modules)
    notes = [
        f"the factors of {name} are those of {embedding}, transposed; PEFT counts them again"
        for name, embedding in followed.items()
    ]
    if parameters and config["layers_to_transform"] not in (None, []):
        notes.append(
            "layers_to_transform chooses among modules alone: PEFT adapts the single tensors of "
            f"every layer, {len(parameters)} of them"
        )
    return Change(tuple(groups), notes=tuple(notes))


def _with_tied(
    blueprint: Blueprint, modules: tuple[Module, ...], tied: Collection[str]
) -> tuple[tuple[Module, ...], dict[str, str]]:
    """Return the targets with the layers tied to the embedding, and which share its factors.

    Those are the linear layers outside any block; others get factors of their own.
    """
    if not tied:
        return modules, {}
    own = tuple(module for module in modules if module.name not in tied)
    embedding = blueprint.embedding
    if embedding not in {module.name for module in own}:
        raise ModelError(
            f"LORA: ensure_weight_tying adapts {', '.join(tied)} as the input embedding, "
            f"{embedding}, which is excluded; let it be a target too"
        )
    more = tuple(blueprint.by_name[name] for name in tied)
    followed = {m.name: embedding for m in more if "." not in m.name and m.kind == "linear"}
    return (*own, *more), followed


def _layers(
    blueprint: Blueprint,
    config: AdapterConfig,
    variant: str,
    modules: tuple[Module, ...],
    followed: Mapping[str, str],
) -> Iterator[Group]:
    ranks = patterns_of(config, "rank_pattern")
    rank = pattern_values(ranks, config["r"])

    def settings(module: Module) -> Hashable:
        r = rank(followed.get(module.name, module.name))
        blocks = block_diagonal(config, module, r) if variant == "use_bdlora" else Blocks()
        return *_alike(module), r, blocks

    plain = not ranks and variant != "use_bdlora"
    for shared, alike in grouped(modules, _alike if plain else settings).items():
        r, blocks = (config["r"], Blocks()) if plain else shared[-2:]
        r = _positive(r)
        refuse_start(config, variant, alike[0], r)
        r = fitted_rank(config, alike[0], r)
        if alike[0].kind == "attention":
            yield from _attention(blueprint, config, alike, r)
        else:
            yield _layer(blueprint, config, variant, alike, r, blocks)


def _layer(
    blueprint: Blueprint,
    config: AdapterConfig,
    variant: str,
    alike: tuple[Module, ...],
    r: int,
    blocks: Blocks,
) -> Group:
    """Return what each of some alike layers is given."""
    module = alike[0]
    d_in, d_out, kernel, split = widths(config, module)
    if r % split:
        raise ModelError(
            f"LORA: r is {r}, and {module.name} is a convolution of {split} groups; set r to a "
            "multiple of them, or leave the layer out"
        )
    pooled = _pooled(blueprint, config, module)
    a_side, b_side = (blocks.number if blocks.side == side else 1 for side in "ab")
    inner = b_side * split
    frozen = variant == "mica"
    name = "lora_embedding_{}" if module.kind == "embedding" else "lora_{}.weight"
    added, more = added_parts(config, variant, module, r)
    parts = (
        Part(name.format("A"), (r, d_in // pooled // a_side, *kernel)),
        Part(name.format("B"), (d_out, r // inner, *(1 for _ in kernel)), trainable=not frozen),
        *_bias(config, module, d_out, blocks),
        *added,
    )
    biases = d_out if config["lora_bias"] and blocks.side != "b" else 0
    factors = r * d_in * prod(kernel) // (pooled * a_side)
    factors += 0 if frozen else d_out * r // inner
    return Group(alike, parts, factors + biases + more)


def _bias(config: AdapterConfig, module: Module, d_out: int, blocks: Blocks) -> tuple[Part, ...]:
    """Return B's bias; a block-diagonal B has none."""
    if not config["lora_bias"] or blocks.side == "b":
        return ()
    if module.kind == "embedding":
        raise ModelError(f"LORA: lora_bias is on, which no embedding takes, as {module.name} is")
    return (Part("lora_B.bias", (d_out,)),)


def _pooled(blueprint: Blueprint, config: AdapterConfig, module: Module) -> int:
    """Return how many inputs QA-LoRA (arXiv 2309.14717) pools into one, on GPTQ's layers only."""
    if not config["use_qalora"] or blueprint.quantisation != "gptq" or module.kind != "linear":
        return 1
    size = whole(config, "qalora_group_size")
    if module.d_in % size:
        raise ModelError(
            f"LORA: use_qalora pools inputs by qalora_group_size {size}, and {module.name} takes "
            f"{module.d_in}; set qalora_group_size to a divisor"
        )
    return size


def _attention(
    blueprint: Blueprint, config: AdapterConfig, alike: tuple[Module, ...], r: int
) -> Iterator[Group]:
    """Yield the factors of torch's attention: of in_proj, D to 3 D, and of out_proj, D to D."""
    shapes = dict(alike[0].tensors)
    if "in_proj_weight" not in shapes:
        raise ModelError(
            f"LORA: {alike[0].name} has queries, keys and values of different widths, which PEFT "
            "can't adapt; leave it out"
        )
    d = shapes["in_proj_weight"][1]
    for modules, d_out in (
        (alike, 3 * d),
        (tuple(blueprint.by_name[f"{m.name}.out_proj"] for m in alike), d),
    ):
        bias = _bias(config, alike[0], d_out, Blocks())
        parts = (Part("lora_A.weight", (r, d)), Part("lora_B.weight", (d_out, r)), *bias)
        yield Group(modules, parts, r * (d + d_out) + (d_out if bias else 0))


# --- parameters by themselves


def _parameters(
    blueprint: Blueprint,
    config: AdapterConfig,
    variant: str,
    parameters: Sequence[TargetParameter],
    modules: Sequence[Module],
) -> Iterator[Group]:
    """Yield the factors of single tensors: for E experts A is (E r, d_in) and B (d_out, E r)."""
    if not parameters:
        return
    adapted = {m.name for m in modules}
    adapted |= {f"{m.name}.out_proj" for m in modules if m.kind == "attention"}
    _refuse_beside(parameters[0], blueprint, config, variant, adapted)
    rank = pattern_values(patterns_of(config, "rank_pattern"), config["r"])
    alike: dict[tuple[tuple[int, ...], int], list[Module]] = {}
    for parameter in parameters:
        layer = _as_layer(parameter, adapted)
        r = _positive(rank(parameter.full_name))
        refuse_start(config, variant, layer, r)
        r = fitted_rank(config, layer, r)
        alike.setdefault((parameter.shape, r), []).append(parameter.module)
    for (shape, r), owners in alike.items():
        *experts, d_out, d_in = shape
        e = prod(experts)
        parts = (Part("lora_A.weight", (e * r, d_in)), Part("lora_B.weight", (d_out, e * r)))
        yield Group(tuple(owners), parts, e * r * (d_in + d_out))


def _as_layer(parameter: TargetParameter, adapted: Collection[str]) -> Module:
    """Return a parameter as the layer that PEFT makes of it."""
    if len(parameter.shape) not in (2, 3) or not parameter.module.name:
        raise ModelError(
            f"LORA: target_parameters has {parameter.full_name} of shape {parameter.shape}; "
            "expected two or three dimensions, within a module; leave it out"
        )
    if parameter.module.name in adapted:
        raise ModelError(
            f"LORA: {parameter.full_name} is adapted as a single tensor, and its module too; "
            "set target_modules so that it isn't, or to []"
        )
    is_weight = parameter.name == "weight" and len(parameter.shape) == 2
    tensors = (("weight", parameter.shape[-2:]),)
    return Module(parameter.full_name, "linear" if is_weight else "experts", tensors)


def _refuse_beside(
    parameter: TargetParameter,
    blueprint: Blueprint,
    config: AdapterConfig,
    variant: str,
    adapted: Collection[str],
) -> None:
    """Raise for what PEFT does not do to single tensors."""
    given = [name for name in ("lora_dropout", "lora_bias") if config[name]]
    given += [variant] if variant else []
    given += ["init_lora_weights loftq"] if config["init_lora_weights"] == "loftq" else []
    # A Conv1D sets fan_in_fan_out, a linear layer takes it back: the last of the model decides.
    layers = (m for m in reversed(blueprint.modules) if m.kind in ("linear", "conv1d"))
    last = next((m.kind for m in layers if m.name in adapted), None)
    if last == "conv1d" or (last is None and config["fan_in_fan_out"]):
        given.append("fan_in_fan_out, as layers of kind conv1d have it")
    if given:
        raise ModelError(
            f"LORA: {parameter.full_name} is adapted as a single tensor, by target_parameters or "
            "by the former names of its experts, which does not go with "
            f"{', '.join(given)}; leave one of them out"
        )


def _positive(r: Any) -> int:
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise ModelError(f"LORA: r is {r!r}; set it to a whole number of 1 or more")
    return r
