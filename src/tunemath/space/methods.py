"""From the contract's update space to what it does to a model: PEFT's methods, and our own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.ledger import Ledger
from tunemath.space.peft import AdapterConfig, Change, Group, Part, Shared, grouped, peft_change
from tunemath.space.peft.match import near_names, unmatched_targets
from tunemath.space.record import (
    AdapterSpace,
    LastLayersSpace,
    LoraSpace,
    PrefixSpace,
    PromptSpace,
    UnfreezeSpace,
    UpdateSpace,
)

__all__ = ["Block", "blocks_of", "change_of", "ledger_of", "peft_settings"]

_WEIGHTS = ("linear", "conv1d", "experts")
_ATTENTION = ("attn", "attention")
_FEED_FORWARD = ("mlp", "ffn", "feed_forward", "feedforward", "moe")
_CLASSIFIERS = ("score", "classifier", "qa_outputs")


def ledger_of(blueprint: Blueprint, space: UpdateSpace) -> Ledger:
    """Return the exact count of what the contract's method trains of a model.

    Raises `ModelError` where the method doesn't fit the model, or a target matches nothing.
    """
    return Ledger(blueprint, change_of(blueprint, space))


def change_of(blueprint: Blueprint, space: UpdateSpace) -> Change:
    """Return all that the contract's method does to a model."""
    if isinstance(space, LoraSpace | PrefixSpace | PromptSpace):
        kind, values = peft_settings(space)
        config = AdapterConfig(kind, **values)
        if isinstance(space, LoraSpace):
            _need_targets(blueprint, config)
        return peft_change(blueprint, config)
    if isinstance(space, AdapterSpace):
        return _adapters(blueprint, space)
    if isinstance(space, LastLayersSpace):
        return _last_layers(blueprint, space)
    return _unfrozen(blueprint, space)


def peft_settings(space: LoraSpace | PrefixSpace | PromptSpace) -> tuple[str, dict[str, Any]]:
    """Return PEFT's type and configuration of a method that PEFT has.

    >>> peft_settings(PromptSpace(method="prompt", length=4))[1]["num_virtual_tokens"]
    4
    """
    values: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    if isinstance(space, LoraSpace):
        return "LORA", {
            **values,
            "r": space.rank,
            "lora_alpha": int(space.alpha) if space.alpha.is_integer() else space.alpha,
            "lora_dropout": space.dropout,
            "use_rslora": space.rslora,
            "use_dora": space.method == "dora",
            "target_modules": space.targets if isinstance(space.targets, str) else [*space.targets],
        }
    values["num_virtual_tokens"] = space.length
    if isinstance(space, PrefixSpace):
        hidden = {"encoder_hidden_size": space.hidden} if space.hidden else {}
        return "PREFIX_TUNING", {**values, **hidden, "prefix_projection": space.projection}
    words = space.init == "vocabulary"
    return "PROMPT_TUNING", {**values, "prompt_tuning_init": "SAMPLE_VOCAB" if words else "RANDOM"}


def _need_targets(blueprint: Blueprint, config: AdapterConfig) -> None:
    """Refuse an empty list of targets, and a name that matches nothing."""
    has = ", ".join(dict.fromkeys(linear.short_name for linear in blueprint.linears))
    if not config["target_modules"]:
        raise ModelError(f"space.targets is empty; expected all-linear, or {has}")
    for name in unmatched_targets(blueprint, config):
        near = near_names(blueprint, name)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ModelError(
            f"space.targets: {name!r} matches no layer of this {blueprint.model_type} "
            f"model.{meant} It has {has}"
        )


# --- bottleneck adapters


class Block(NamedTuple):
    """A decoder's layer that has one attention and one feed-forward module."""

    name: str
    attention: str
    feed_forward: str


def blocks_of(blueprint: Blueprint) -> tuple[Block, ...]:
    """Return the blocks of a model's last stack of layers, by the names of their modules.

    Raises `ModelError` where a block is built in another way.
    """
    _, layers = _last_stack(blueprint)
    return tuple(_block(blueprint, name) for name in layers)


def _block(blueprint: Blueprint, name: str) -> Block:
    children = dict.fromkeys(
        module.name.removeprefix(f"{name}.").partition(".")[0]
        for module in blueprint.under(name)
        if module.kind in _WEIGHTS
    )
    attention = [c for c in children if _named(c, _ATTENTION)]
    others = [c for c in children if c not in attention]
    if len(attention) == len(others) == 1 and _named(others[0], _FEED_FORWARD):
        return Block(name, f"{name}.{attention[0]}", f"{name}.{others[0]}")
    raise ModelError(
        "bottleneck adapters need layers of one attention and one feed-forward module; "
        f"{name} of this {blueprint.model_type or 'model'} has {', '.join(children) or 'neither'}; "
        "use lora, or full"
    )


def _named(child: str, words: Sequence[str]) -> bool:
    return any(word in child.lower() for word in words)


def _last_stack(blueprint: Blueprint) -> tuple[str, tuple[str, ...]]:
    """Return the last stack of numbered layers, such as model.layers, and its layers' names."""
    stacks: dict[str, dict[str, None]] = {}
    for module in blueprint.modules:
        parts = module.name.split(".")
        at = next((place for place, part in enumerate(parts) if part.isdigit()), None)
        if at is not None:
            stacks.setdefault(".".join(parts[:at]), {})[".".join(parts[: at + 1])] = None
    if not stacks:
        raise ModelError(
            f"this {blueprint.model_type or 'model'} has no numbered layers, such as model.layers.0"
        )
    last = list(stacks)[-1]
    return last, tuple(stacks[last])


def _adapters(blueprint: Blueprint, space: AdapterSpace) -> Change:
    """Return bottleneck adapters: Houlsby (arXiv:1902.00751), Pfeiffer (arXiv:2005.00247), parallel
    (arXiv:2110.04366): ``2 d m``, and ``m + d`` with biases; Compacter (arXiv:2106.04647):
    ``2 (d + m)`` and the biases, and ``n³`` once.
    """
    d, m, n = blueprint.hidden, space.bottleneck, space.kronecker or 0
    two = space.style in ("houlsby", "compacter")
    hosts = [
        host
        for block in blocks_of(blueprint)
        for host in ((block.attention, block.feed_forward) if two else (block.feed_forward,))
    ]
    shared: tuple[Shared, ...] = ()
    if space.style == "compacter":
        if d % n or m % n:
            raise ModelError(
                f"space.kronecker {n} must divide the model's width {d} and space.bottleneck {m}"
            )
        weights = (
            Part("adapter.down.left", (n, d // n)),
            Part("adapter.down.right", (n, m // n)),
            Part("adapter.up.left", (n, m // n)),
            Part("adapter.up.right", (n, d // n)),
        )
        trainable = 2 * (d + m) + (m + d if space.bias else 0)
        shared = (Shared("adapter.rule", (Part("rule", (n, n, n)),), n**3),)
    else:
        weights = (Part("adapter.down.weight", (m, d)), Part("adapter.up.weight", (d, m)))
        trainable = 2 * d * m + (m + d if space.bias else 0)
    biases = (Part("adapter.down.bias", (m,)), Part("adapter.up.bias", (d,)))
    parts = (*weights, *(biases if space.bias else ()))
    anchors = grouped(_anchor(blueprint, host) for host in hosts)
    groups = tuple(Group(modules, parts, trainable) for modules in anchors.values())
    return _held(Change(groups, shared))


def _anchor(blueprint: Blueprint, host: str) -> Module:
    """Return the module under which an adapter's parameters are listed: the host's last layer."""
    return [module for module in blueprint.under(host) if module.kind in _WEIGHTS][-1]


def _held(change: Change) -> Change:
    """Hold the closed forms against the sum of their parts."""
    for each in (*change.groups, *change.shared):
        if each.trainable != sum(part.parameters for part in each.parts):
            raise AssertionError(f"the closed form gives {each.trainable} parameters, not its sum")
    return change


# --- weights of the model itself


def _unfrozen(blueprint: Blueprint, space: UnfreezeSpace) -> Change:
    """Return the weights of one kind: all, biases (arXiv:2106.10199), norms, the output layer."""
    if space.method == "full":
        return _unfreezing(blueprint, (name for name, _ in blueprint.tensors()), space.method)
    if space.method == "bitfit":
        names = (n for n, _ in blueprint.tensors() if n.endswith((".bias", "_bias")) or n == "bias")
        return _unfreezing(blueprint, names, space.method)
    if space.method == "layernorm":
        norms = [module for module in blueprint.modules if module.kind == "norm"]
        return _unfreezing(blueprint, _names(norms), space.method)
    return _unfreezing(blueprint, _names(_heads(blueprint)), space.method)


def _last_layers(blueprint: Blueprint, space: LastLayersSpace) -> Change:
    """Return the last k layers and what the model has after them: the final norm, a classifier.

    The output layer of a language model is left out unless asked for.
    """
    stack, layers = _last_stack(blueprint)
    if space.layers > len(layers):
        raise ModelError(f"space.layers is {space.layers}, but {stack} has only {len(layers)}")
    first = layers[-space.layers]
    start = next(
        at
        for at, m in enumerate(blueprint.modules)
        if m.name == first or m.name.startswith(f"{first}.")
    )
    chosen = [m for m in blueprint.modules[start:] if space.head or m.name != blueprint.head]
    if space.head:
        chosen += [m for m in _heads(blueprint) if m not in chosen]
    return _unfreezing(blueprint, _names(chosen), "last_layers")


def _heads(blueprint: Blueprint) -> list[Module]:
    """Return the output layer: a language model's, else a classifier."""
    if blueprint.head:
        return [blueprint.by_name[blueprint.head]]
    return [module for name in _CLASSIFIERS for module in blueprint.under(name)]


def _names(modules: Iterable[Module]) -> Iterator[str]:
    for module in modules:
        start = f"{module.name}." if module.name else ""
        yield from (start + name for name, _ in module.tensors)


def _unfreezing(blueprint: Blueprint, names: Iterable[str], method: str) -> Change:
    chosen = frozenset(names) - blueprint.unlearnable
    if not chosen:
        raise ModelError(
            f"space.method {method} trains nothing: this {blueprint.model_type or 'model'} has no "
            "such weights; use lora, or full"
        )
    note = (
        "the output layer is tied to the input embedding, which is trained with it"
        if method != "full" and blueprint.tied_head and f"{blueprint.head}.weight" in chosen
        else ""
    )
    return Change(unfrozen=chosen, notes=(note,) if note else ())
