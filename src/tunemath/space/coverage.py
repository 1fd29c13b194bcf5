"""What a method reaches: by block type, by layer; and whether that is what its targets suggest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Change

__all__ = ["BlockRow", "Coverage", "StackRow", "block_type", "coverage_of"]

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
    """The layers in which something is trained."""


@dataclass(frozen=True)
class Coverage:
    """What a method reaches in a model."""

    blocks: tuple[BlockRow, ...]
    stacks: tuple[StackRow, ...]
    findings: tuple[str, ...]
    """Where it reaches much less than its targets suggest, a sentence each with what to do."""


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
    blueprint: Blueprint, change: Change, *, asked: object = None, chosen_layers: bool = False
) -> Coverage:
    """Return what a change reaches of a model, and where that is less than was meant.

    ``asked`` are the target names as given (``all-linear`` means every linear layer), and
    ``chosen_layers`` says that layers were left out on purpose.
    """
    trained = {module.name for module in change.targets}
    trained |= {name.rpartition(".")[0] for name in change.unfrozen}
    blocks = tuple(_blocks(blueprint, trained))
    stacks = tuple(_stacks(blueprint, trained))
    findings = []
    if not chosen_layers:
        findings += _missed_layers(blueprint, stacks, trained)
    findings += _missed_experts(blueprint, blocks, trained, asked)
    return Coverage(blocks, stacks, tuple(findings))


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


def _place(name: str) -> tuple[str, int] | None:
    """Return the stack and the layer that a module lies in: the first number in its name."""
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[:at]), int(part)
    return None


def _stacks(blueprint: Blueprint, trained: set[str]) -> Iterable[StackRow]:
    layers: dict[str, set[int]] = defaultdict(set)
    reached: dict[str, set[int]] = defaultdict(set)
    for module in blueprint.modules:
        place = _place(module.name)
        if place is None:
            continue
        layers[place[0]].add(place[1])
        if module.name in trained:
            reached[place[0]].add(place[1])
    return (StackRow(stack, len(every), tuple(sorted(reached[stack])))
            for stack, every in layers.items())  # fmt: skip


def _missed_layers(
    blueprint: Blueprint, stacks: Iterable[StackRow], trained: set[str]
) -> Iterable[str]:
    """Say where most layers are passed over: a hybrid's other blocks have other names."""
    for row in stacks:
        if not row.reached or len(row.reached) >= _ENOUGH * row.layers:
            continue
        names: dict[str, None] = {}
        for module in blueprint.linears:
            place = _place(module.name)
            if place and place[0] == row.stack and place[1] not in row.reached:
                names[module.short_name] = None
        yield (
            f"{row.stack}: {len(row.reached)} of {row.layers} layers are reached; the others have "
            f"{', '.join(names) or 'no linear layer'}: name them as targets too, or use all-linear"
        )


def _missed_experts(
    blueprint: Blueprint, blocks: Iterable[BlockRow], trained: set[str], asked: object
) -> Iterable[str]:
    """Say that fused experts are passed over, where feed-forward layers were asked for."""
    if not _asks_for_feed_forward(blueprint, asked):
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
    yield (
        f"{len(fused)} blocks of experts, {100 * held / blueprint.parameters:.0f} % of the model's "
        "parameters, are not reached: they are single tensors, not linear layers; name "
        f"{', '.join(tensors)} in target_parameters"
    )


def _asks_for_feed_forward(blueprint: Blueprint, asked: object) -> bool:
    if isinstance(asked, str):
        return asked == "all-linear"
    names = set(asked) if isinstance(asked, list | tuple | set) else set()
    known = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "gate_up_proj"}
    return bool(names & known) or any(
        block_type(module, blueprint.head) in _FEED_FORWARD
        for module in blueprint.linears
        if module.short_name in names
    )
