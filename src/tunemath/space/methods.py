"""From the contract's update space to what it does to a model: PEFT's methods, and our own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module, positions_of
from tunemath.space.layers import after_layers, heads_of, layers_of
from tunemath.space.ledger import Ledger
from tunemath.space.peft import (
    AdapterConfig,
    Change,
    Group,
    Part,
    Shared,
    grouped,
    held,
    peft_change,
    unmatched_targets,
)
from tunemath.space.peft.match import near_names
from tunemath.space.record import (
    AdapterSpace,
    LastLayersSpace,
    LoraSpace,
    PrefixSpace,
    PromptSpace,
    UnfreezeSpace,
    UpdateSpace,
)

__all__ = ["Block", "blocks_of", "change_of", "layers_of", "ledger_of", "peft_settings", "task_of"]

_WEIGHTS = ("linear", "conv1d", "experts")
_MATRICES = ("linear", "conv1d", "embedding")
_ATTENTION = ("attn", "attention")
_FEED_FORWARD = ("mlp", "ffn", "feed_forward", "feedforward", "moe")
# The biases that DeBERTa's one projection to queries, keys and values has beside it.
_BESIDE = ("q_bias", "v_bias")
# The tasks whose new head PEFT adds too late to keep it from being a target.
_LATE_HEADS = ("TOKEN_CLS", "QUESTION_ANS")
# PEFT's task of a class, by the ending of its name; the first that fits counts.
_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForImageClassification": "SEQ_CLS",
    "ForImageClassificationWithTeacher": "SEQ_CLS",
    "ForAudioClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "LMHeadModel": "CAUSAL_LM",
    "DoubleHeadsModel": "CAUSAL_LM",
    "Model": "FEATURE_EXTRACTION",
}


def ledger_of(blueprint: Blueprint, space: UpdateSpace, *, task_type: str = "CAUSAL_LM") -> Ledger:
    """Return the exact count of what the contract's method trains of a model.

    ``task_type`` is PEFT's, as in `change_of`. Raises `ModelError` where the method doesn't fit the
    model, or a target matches nothing.
    """
    return Ledger(blueprint, change_of(blueprint, space, task_type=task_type))


def change_of(blueprint: Blueprint, space: UpdateSpace, *, task_type: str = "CAUSAL_LM") -> Change:
    """Return all that the contract's method does to a model.

    ``task_type`` is PEFT's, such as SEQ_CLS: the methods that PEFT has train the new head of such a
    model too. A run's is CAUSAL_LM; `task_of` gives that of a model's class.
    """
    if isinstance(space, LoraSpace | PrefixSpace | PromptSpace):
        kind, values = peft_settings(space, task_type)
        config = AdapterConfig(kind, **values)
        if not isinstance(space, LoraSpace):
            _hold_places(blueprint, space)
            return peft_change(blueprint, config)
        _need_targets(blueprint, config)
        return _hold_rank(peft_change(blueprint, config), space.rank)
    if isinstance(space, AdapterSpace):
        return _adapters(blueprint, space)
    if isinstance(space, LastLayersSpace):
        return _last_layers(blueprint, space)
    return _unfrozen(blueprint, space)


def peft_settings(
    space: LoraSpace | PrefixSpace | PromptSpace, task_type: str = "CAUSAL_LM"
) -> tuple[str, dict[str, Any]]:
    """Return PEFT's type and configuration of a method that PEFT has.

    >>> peft_settings(PromptSpace(method="prompt", length=4))[1]["num_virtual_tokens"]
    4
    """
    values: dict[str, Any] = {"task_type": task_type}
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


def task_of(blueprint: Blueprint) -> str:
    """Return PEFT's task of a model by its class; a language model's where that says nothing.

    >>> task_of(Blueprint("bert", "BertForTokenClassification", ()))
    'TOKEN_CLS'
    """
    name = blueprint.architecture
    if name.endswith("ForConditionalGeneration"):
        return "SEQ_2_SEQ_LM" if blueprint.config.get("is_encoder_decoder") else "CAUSAL_LM"
    return next((task for end, task in _TASKS.items() if name.endswith(end)), "CAUSAL_LM")


def _need_targets(blueprint: Blueprint, config: AdapterConfig) -> None:
    """Refuse an empty list of targets, a name that matches nothing, and a head adapted and new."""
    names = dict.fromkeys(linear.short_name for linear in blueprint.linears)
    has = ", ".join(names)
    if config["target_modules"] == "all-linear" and config["task_type"] in _LATE_HEADS:
        others = names.keys() - {head.short_name for head in heads_of(blueprint)}
        raise ModelError(
            f"space.targets is all-linear, which for task {config['task_type']} means the new head "
            "too, and PEFT can't adapt what it trains whole; name the layers: "
            f"{', '.join(name for name in names if name in others)}"
        )
    if not config["target_modules"]:
        raise ModelError(f"space.targets is empty; expected all-linear, or {has}")
    for name in unmatched_targets(blueprint, config):
        near = near_names(blueprint, name)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ModelError(
            f"space.targets: {name!r} matches no layer of this {blueprint.model_type} "
            f"model.{meant} It has {has}"
        )


def _hold_rank(change: Change, rank: int) -> Change:
    """Refuse a rank that no target has a use for; say where some have none.

    A matrix of m rows and n columns has a rank of at most min(m, n), and so has its update.
    """
    sides = {module: min(module.d_in, module.d_out) for module in change.targets}
    most = max(sides, key=lambda module: sides[module], default=None)
    if most is None or any(module.kind not in _MATRICES for module in sides):
        return change
    if rank > sides[most]:
        raise ModelError(
            f"space.rank is {rank}, and no target has a use for more than {sides[most]}, the "
            f"smaller side of {most.name} ({most.d_out} × {most.d_in}); give at most that"
        )
    small = [module for module in change.targets if rank > sides[module]]
    if not small:
        return change
    first = small[0]
    note = (
        f"rank {rank} is more than the smaller side of {len(small)} of {len(sides)} targets, such "
        f"as {first.name} ({first.d_out} × {first.d_in}), where what is over adds nothing"
    )
    return replace(change, notes=(*change.notes, note))


def _hold_places(blueprint: Blueprint, space: PrefixSpace | PromptSpace) -> None:
    """Refuse more virtual tokens than the model has positions, or as many."""
    positions = positions_of(blueprint).limit
    if positions is not None and space.length >= positions:
        raise ModelError(
            f"space.length is {space.length}, and the model has {positions} positions for virtual "
            "tokens and rows together; give a shorter one"
        )


# --- bottleneck adapters


class Block(NamedTuple):
    """A decoder's layer that has one attention and one feed-forward module."""

    name: str
    attention: str
    feed_forward: str


def blocks_of(blueprint: Blueprint) -> tuple[Block, ...]:
    """Return the blocks of the layers that give a model's output, by the names of their modules.

    Raises `ModelError` where a block is built in another way.
    """
    _, layers = layers_of(blueprint)
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
    return held(Change(groups, shared))


def _anchor(blueprint: Blueprint, host: str) -> Module:
    """Return the module under which an adapter's parameters are listed: the host's last layer."""
    return [module for module in blueprint.under(host) if module.kind in _WEIGHTS][-1]


# --- weights of the model itself


def _unfrozen(blueprint: Blueprint, space: UnfreezeSpace) -> Change:
    """Return the weights of one kind: all, biases (arXiv:2106.10199), norms, the output layer."""
    if space.method == "full":
        return _unfreezing(blueprint, (name for name, _ in blueprint.tensors()), space.method)
    if space.method == "bitfit":
        return _bitfit(blueprint)
    if space.method == "layernorm":
        norms = [module for module in blueprint.modules if module.kind == "norm"]
        return _unfreezing(blueprint, _names(norms), space.method)
    return _unfreezing(blueprint, _names(heads_of(blueprint)), space.method)


def _bitfit(blueprint: Blueprint) -> Change:
    """Return the biases of layers, and say which parameters are called so and are none."""
    biases: list[str] = []
    others: dict[str, None] = {}
    for module in blueprint.modules:
        keys = {key for key, _ in module.tensors}
        for key in keys:
            full = f"{module.name}.{key}" if module.name else key
            if _is_bias(key, keys):
                biases.append(full)
            elif key.endswith("_bias") and full not in blueprint.unlearnable:
                others[".".join(full.split(".")[-2:])] = None
    note = f"no layer's biases, so frozen: {', '.join(sorted(others))}" if others else ""
    return _unfreezing(blueprint, biases, "bitfit", note)


def _is_bias(key: str, keys: Iterable[str]) -> bool:
    """Whether a parameter is what a layer adds to its output: its weight lies beside it.

    >>> _is_bias("in_proj_bias", {"in_proj_weight"}), _is_bias("down_proj_bias", {"down_proj"})
    (True, True)
    >>> _is_bias("dt_bias", {"A_log", "dt_bias"})
    False
    """
    name = key.removesuffix("_bias")
    return key in ("bias", *_BESIDE) or (name != key and bool({name, f"{name}_weight"} & {*keys}))


def _last_layers(blueprint: Blueprint, space: LastLayersSpace) -> Change:
    """Return the last k layers and what the model has after them: the final norm, a classifier.

    The output layer of a language model is left out unless asked for.
    """
    stack, layers = layers_of(blueprint)
    if space.layers > len(layers):
        raise ModelError(f"space.layers is {space.layers}, but {stack} has only {len(layers)}")
    chosen = [module for name in layers[-space.layers :] for module in blueprint.under(name)]
    chosen += after_layers(blueprint)
    if space.head:
        chosen += heads_of(blueprint)
    return _unfreezing(blueprint, _names(chosen), "last_layers")


def _names(modules: Iterable[Module]) -> Iterator[str]:
    for module in modules:
        start = f"{module.name}." if module.name else ""
        yield from (start + name for name, _ in module.tensors)


def _unfreezing(blueprint: Blueprint, names: Iterable[str], method: str, *notes: str) -> Change:
    asked, kind = frozenset(names), blueprint.model_type or "model"
    chosen = asked - blueprint.unlearnable
    frozen = sorted(asked & blueprint.unlearnable)
    said = [note for note in notes if note]
    if not chosen:
        why, instead = f"this {kind} has no such weights", "lora, or full"
        if said:
            why = f"{why} ({said[0]})"
        if frozen:
            form = f", quantised as {blueprint.quantisation}" if blueprint.quantisation else ""
            why, instead = f"this {kind} itself holds {_named_some(frozen)} frozen{form}", "lora"
        raise ModelError(f"space.method {method} trains nothing: {why}; use {instead}")
    if frozen:
        said.append(f"the model itself holds {_named_some(frozen)} frozen; that stays so")
    if method != "full" and blueprint.tied_head and f"{blueprint.head}.weight" in chosen:
        said.append("the output layer is tied to the input embedding, which is trained with it")
    return Change(unfrozen=chosen, notes=tuple(said))


def _named_some(names: Sequence[str]) -> str:
    """Return how many parameters there are, and the first of them.

    >>> _named_some(["a.weight", "b.weight"])
    '2 parameters (a.weight, …)'
    """
    first = names[0] + (", …" if len(names) > 1 else "")
    return f"{len(names)} parameter{'s' * (len(names) > 1)} ({first})"
