"""What a method reaches: by block type, by layer; and whether that is what its targets suggest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.layers import layers_of, place_of
from tunemath.space.peft.change import Change
from tunemath.space.peft.match import near_to

__all__ = ["BlockRow", "Coverage", "StackRow", "block_type", "coverage_of", "near_parameters"]

# A block's type by the parts of its modules' names, most telling first.
_TYPES = (
    ("cross-attention", ("encdecattention", "encoder_attn", "crossattention", "cross_attn")),
    ("linear attention", ("linear_attn", "linear_attention", "delta_net")),
    ("state space", ("mamba", "ssm", "mixer", "recurrent")),
    ("shared expert", ("shared_expert", "shared_experts", "shared_mlp")),
    ("experts", ("experts", "expert")),
    ("router", ("router", "gate", "wg")),
    ("attention", ("attn", "attention", "self_attention", "self_attn", "selfattention")),
    (
        "feed-forward",
        ("mlp", "ffn", "feed_forward", "densereludense", "intermediate", "output", "fc1", "fc2",
         "fc_in", "fc_out", "linear1", "linear2"),
    ),
)  # fmt: skip
_FEED_FORWARD = frozenset({"feed-forward", "experts", "shared expert"})
# PEFT's tuner types that reach a model otherwise than by its modules.
_BY_KEYS = ("CARTRIDGE", "PREFIX_TUNING")
_BY_INPUT = ("CPT", "MULTITASK_PROMPT_TUNING", "PROMPT_TUNING", "P_TUNING")
# A method that reaches less than this share of what its targets suggest is a finding.
_ENOUGH = 0.9
_MOST = 0.5


@dataclass(frozen=True)
class BlockRow:
    """What is reached of the blocks of one type."""

    block: str
    modules: int
    """Modules with a weight of two dimensions or more."""
    reached: int
    weights: int
    """The elements of those weights."""
    weights_reached: int


@dataclass(frozen=True)
class StackRow:
    """What is reached of a stack of layers, such as model.layers."""

    stack: str
    layers: int
    reached: tuple[int, ...]
    """The layers in which something is trained, or which attend to trained keys and values."""


@dataclass(frozen=True)
class Coverage:
    """What a method reaches in a model."""

    blocks: tuple[BlockRow, ...]
    stacks: tuple[StackRow, ...]
    findings: tuple[str, ...]
    """Settings without effect, and where much less is reached than the targets suggest.

    A sentence each, with what to do.
    """
    beside: tuple[str, ...] = ()
    """What it reaches otherwise than by training in the model's modules, a sentence each."""


def block_type(module: Module, head: str = "") -> str:
    """Return the type of the block that a module belongs to, by its name.

    >>> block_type(Module("model.layers.3.self_attn.q_proj", "linear", (("weight", (4, 4)),)))
    'attention'
    """
    if module.kind == "norm":
        return "norm"
    if module.name == head:
        return "head"
    parts = module.name.lower().split(".")
    for block, names in _TYPES:
        if any(part in names for part in parts):
            return block
    return "embedding" if module.kind == "embedding" else "other"


def coverage_of(
    blueprint: Blueprint,
    change: Change,
    *,
    asked: object = None,
    chosen_layers: bool = False,
    peft_type: str = "",
    field: str = "space.targets",
) -> Coverage:
    """Return what a change reaches of a model, and where that is less than was meant.

    ``asked`` are the target names as given (``all-linear`` means every linear layer), in the
    ``field`` that the advice names. ``chosen_layers`` says that layers were left out on purpose, as
    an expression and full names do by themselves. ``peft_type`` is PEFT's name for the method, by
    which prefixes and prompts are told from each other.
    """
    trained = {m.name for g in change.groups if g.trainable or not g.parts for m in g.modules}
    trained |= {name.rpartition(".")[0] for name in change.unfrozen}
    blocks = tuple(_blocks(blueprint, trained))
    stacks = tuple(_stacks(blueprint, {*trained, *_reached_places(blueprint, change, peft_type)}))
    findings = [*change.findings]
    if not (chosen_layers or _names_layers(asked)):
        findings += _missed_layers(blueprint, stacks, asked, field)
    findings += _missed_experts(blueprint, blocks, trained, asked, peft_type, field)
    return Coverage(blocks, stacks, tuple(findings), tuple(_beside(blueprint, peft_type)))


def near_parameters(blueprint: Blueprint, name: str, most: int = 3) -> list[str]:
    """Return the names of a model's parameters that are most like one that it doesn't have.

    They are given from as far back as the name that was asked for.
    """
    return near_to(name, (full for full, _ in blueprint.tensors()), most)


def _weights(module: Module) -> int:
    return sum(prod(shape) for _, shape in module.tensors if len(shape) > 1)


def _blocks(blueprint: Blueprint, trained: set[str]) -> Iterable[BlockRow]:
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for module in blueprint.modules:
        weights = _weights(module)
        reached = module.name in trained
        if not weights and not reached:
            continue
        row = sums[block_type(module, blueprint.head)]
        row[0] += 1
        row[1] += reached
        row[2] += weights
        row[3] += weights * reached
    return (BlockRow(block, *row) for block, row in sums.items())


def _stacks(blueprint: Blueprint, reached: set[str]) -> Iterable[StackRow]:
    layers: dict[str, set[int]] = defaultdict(set)
    for module in blueprint.modules:
        place = place_of(module.name)
        if place is not None:
            layers[place[0]].add(place[1])
    places = {place_of(name) for name in reached}
    return (
        StackRow(stack, len(every), tuple(n for n in sorted(every) if (stack, n) in places))
        for stack, every in layers.items()
    )


# --- what is reached otherwise than by training in modules


def _reached_places(blueprint: Blueprint, change: Change, peft_type: str) -> Iterator[str]:
    """Yield the names of blocks and layers that are given something, though no module of theirs."""
    if change.shared:
        places = {*blueprint.containers, *blueprint.by_name}
        yield from (each.name for each in change.shared if each.name in places)
    if peft_type in _BY_KEYS:
        yield from _layers(blueprint)[1]


def _beside(blueprint: Blueprint, peft_type: str) -> Iterator[str]:
    if peft_type in _BY_KEYS:
        stack, _ = _layers(blueprint)
        of = f" of {stack}" if stack else ""
        yield f"the keys and values of every layer{of}, before which trained ones stand"
    elif peft_type in _BY_INPUT:
        yield "the input, before which trained virtual tokens stand"
    elif peft_type == "XLORA":
        yield "the weights that a trained classifier gives its adapters"


def _layers(blueprint: Blueprint) -> tuple[str, tuple[str, ...]]:
    """Return the stack that gives the output and its layers; nothing where none are numbered."""
    numbered = any(place_of(module.name) for module in blueprint.modules)
    return layers_of(blueprint) if numbered else ("", ())


# --- what was meant and is not reached


def _names_layers(asked: object) -> bool:
    """Whether targets say themselves in which layers they lie: an expression, or full names."""
    if isinstance(asked, str):
        return asked.lower() != "all-linear"
    names = asked if isinstance(asked, list | tuple | set) else ()
    return any(part.isdecimal() for name in names for part in str(name).split("."))


def _missed_layers(
    blueprint: Blueprint, stacks: Iterable[StackRow], asked: object, field: str
) -> Iterator[str]:
    """Say where most layers are passed over: a hybrid's other blocks have other names."""
    for row in stacks:
        if not row.reached or len(row.reached) >= _ENOUGH * row.layers:
            continue
        names: dict[str, None] = {}
        for module in blueprint.linears:
            place = place_of(module.name)
            if place and place[0] == row.stack and place[1] not in row.reached:
                names[module.short_name] = None
        found = f"{row.stack}: {len(row.reached)} of {row.layers} layers are reached"
        if asked is None and field == "space.targets":
            yield f"{found}; the others have nothing that this method trains"
        else:
            others = ", ".join(names) or "no linear layer"
            yield (
                f"{found}; the others have {others}: name them in {field} too, or set it to "
                "all-linear"
            )


def _missed_experts(
    blueprint: Blueprint,
    blocks: Iterable[BlockRow],
    trained: set[str],
    asked: object,
    peft_type: str,
    field: str,
) -> Iterator[str]:
    """Say that fused experts are passed over, where feed-forward layers were asked for."""
    if not trained or not _asks_for_feed_forward(blueprint, asked):
        return
    rows = [row for row in blocks if row.block in _FEED_FORWARD]
    weights = sum(row.weights for row in rows)
    reached = sum(row.weights_reached for row in rows)
    fused = [m for m in blueprint.modules if m.kind == "experts" and m.name not in trained]
    if not fused or reached >= _MOST * weights:
        return
    held = sum(_weights(module) for module in fused)
    tensors = dict.fromkeys(
        f"{module.short_name}.{name}" for module in fused for name, _ in module.tensors
        if not name.endswith("bias")
    )  # fmt: skip
    if field == "space.targets":
        advice = (
            f"{field} can't name them; `tunemath count --peft-config` counts them with "
            "target_parameters"
        )
    elif peft_type == "LORA":
        advice = "name in target_parameters"
    else:
        advice = f"{peft_type} can't train them; LORA can, where target_parameters names"
    yield (
        f"{len(fused)} blocks of experts, {100 * held / blueprint.parameters:.0f} % of the model's "
        f"parameters, are not reached: they are single tensors, not linear layers; {advice} "
        f"{', '.join(tensors)}"
    )


def _asks_for_feed_forward(blueprint: Blueprint, asked: object) -> bool:
    if isinstance(asked, str):
        return asked.lower() == "all-linear"
    names = set(asked) if isinstance(asked, list | tuple | set) else set()
    known = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "gate_up_proj"}
    return bool(names & known) or any(
        block_type(module, blueprint.head) in _FEED_FORWARD
        for module in blueprint.linears
        if module.short_name in names
    )
