"""What a method on a model costs in memory: from its blueprint and ledger to the budget's records.

The passes of Llama's relatives follow from their shapes; other families are traced once, which
needs torch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Literal

from tunemath.budget import (
    Activations,
    Attention,
    Decoder,
    DecoderLayer,
    Held,
    Linear,
    Quantisation,
    Training,
    weight_bytes,
)
from tunemath.errors import ModelError
from tunemath.space import Blueprint, Change, Ledger, Module
from tunemath.space.layers import place_of

__all__ = ["Precision", "decoder_of", "held_of", "saved_bytes", "training_of"]

# Families whose blocks are Llama's: RMS norms before both modules, rotary embeddings, a gate.
_LLAMA_LIKE = ("llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3")
_FLOAT32 = 4
_HALF = 2


@dataclass(frozen=True)
class Precision:
    """In what numbers a model is held and computed."""

    dtype: str = "float32"
    """Of the weights that are neither trained nor quantised."""
    quantisation: Quantisation | None = None

    @property
    def element(self) -> int:
        """Bytes of an activation."""
        return _FLOAT32 if self.dtype == "float32" else _HALF


def held_of(
    ledger: Ledger,
    precision: Precision = Precision(),
    *,
    attention: Attention = "fused",
    masked: bool = False,
    checkpointing: bool = False,
    dropout: bool = False,
    traced: Callable[[], Activations] | None = None,
    trace: bool = False,
) -> Held:
    """Return what a method on a model holds.

    ``traced`` gives the activations of a family that has no closed form, and with ``trace`` those
    of any. A model that can't be traced is taken for one like Llama, roughly.
    """
    blueprint = ledger.blueprint
    activations: Activations | None = None
    if not trace:
        activations = decoder_of(
            blueprint,
            ledger.change,
            element=precision.element,
            attention=attention,
            masked=masked,
            checkpointing=checkpointing,
            dropout=dropout,
        )
    error, source = 0.05 if precision.element == _FLOAT32 else 0.1, "closed form"
    if activations is None:
        activations, source = _traced_or_rough(ledger, traced, precision.element, checkpointing)
        error = 0.3 if source == "rough" else error
    names = {blueprint.tied.get(name, name) for name in ledger.change.unfrozen}
    trained = {name: shape for name, shape in blueprint.tensors() if name in names}
    return Held(
        base=_base_bytes(ledger, precision),
        added=ledger.added,
        unfrozen=ledger.unfrozen,
        hidden=blueprint.hidden,
        vocab=blueprint.vocab,
        activations=activations,
        head_trained=_head_weight(blueprint) in trained,
        largest_layer=_largest_layer(blueprint, precision),
        dequantised=_dequantised(blueprint, precision),
        element=precision.element,
        error=error,
        source=source,
    )


def _traced_or_rough(
    ledger: Ledger,
    traced: Callable[[], Activations] | None,
    element: int,
    checkpointing: bool,
) -> tuple[Activations, Literal["traced", "rough"]]:
    with suppress(ModelError):
        if traced is not None:
            return traced(), "traced"
    blueprint = ledger.blueprint
    rank = max((shape[0] for shape, _ in ledger.added if len(shape) == 2), default=0)
    trained = bool(ledger.change.unfrozen)
    d, inner = blueprint.hidden, blueprint.intermediate
    query, narrow = (n * blueprint.head_dim for n in (blueprint.heads, blueprint.kv_heads))

    def linear(d_in: int, d_out: int) -> Linear:
        return Linear(d_in, d_out, rank=min(rank, d_in, d_out), trained=trained)

    layer = DecoderLayer(
        attention=(linear(d, query), linear(d, narrow), linear(d, narrow)),
        output=linear(query, d),
        feed=(linear(d, inner), linear(d, inner)),
        down=linear(inner, d),
        heads=blueprint.heads,
        kv_heads=blueprint.kv_heads,
        head_dim=blueprint.head_dim,
        intermediate=inner,
        norms_trained=trained,
        gradients=_FLOAT32 * ledger.trainable // blueprint.layers,
    )
    layers = (layer,) * blueprint.layers
    return Decoder(layers, element=element, checkpointing=checkpointing), "rough"


def training_of(ledger: Ledger) -> Training:
    """Return what a method adds to the products and trains of them, for `training_flops`."""
    blueprint, change = ledger.blueprint, ledger.change
    tied = blueprint.tied
    unfrozen = {tied.get(name, name) for name in change.unfrozen}
    return Training(
        added=sum(len(group.modules) * group.trainable for group in change.groups),
        unfrozen=sum(
            linear.d_in * linear.d_out
            for linear in blueprint.linears
            if f"{linear.name}.weight" in unfrozen
        ),
        head_trained=_head_weight(blueprint) in unfrozen,
        depth=_depth(ledger),
    )


def saved_bytes(ledger: Ledger) -> int:
    """Return the bytes of the update on disk, float32, without its header.

    A model that is trained in full is saved whole.
    """
    whole = {name for name, _ in ledger.blueprint.tensors()} <= ledger.change.unfrozen
    return _FLOAT32 * (ledger.total if whole else ledger.trainable)


def _depth(ledger: Ledger) -> float:
    """Return the share of the layers that lie above the lowest trained tensor."""
    blueprint, change = ledger.blueprint, ledger.change
    if change.shared or f"{blueprint.embedding}.weight" in change.unfrozen:
        return 1.0
    layers = _layers(blueprint)
    if len({stack for stack, _ in layers}) != 1:
        return 1.0  # encoders, towers: the lowest may lie anywhere
    owners = {module.name for module in change.targets} | {
        name.rpartition(".")[0] for name in change.unfrozen
    }
    for below, modules in enumerate(layers.values()):
        if any(module.name in owners for module in modules):
            return 1 - below / len(layers)
    return 0.0


def _layers(blueprint: Blueprint) -> dict[tuple[str, int], list[Module]]:
    """Return the modules of each numbered layer by its stack and number, in order."""
    found: dict[tuple[str, int], list[Module]] = {}
    for module in blueprint.modules:
        place = place_of(module.name)
        if place is not None:
            found.setdefault(place, []).append(module)
    return found


def _base_bytes(ledger: Ledger, precision: Precision) -> int:
    """Return the bytes of the base's weights; a method that trains them holds them in float32."""
    blueprint = ledger.blueprint
    parameters = ledger.total - sum(prod(shape) * count for shape, count in ledger.added)
    if ledger.change.unfrozen:
        return _FLOAT32 * parameters
    if precision.quantisation is None:
        return weight_bytes((), parameters, dtype=precision.dtype)
    linears = [((linear.d_out, linear.d_in), 1) for linear in blueprint.linears]
    others = parameters - sum(prod(shape) for shape, _ in linears)
    return weight_bytes(linears, others, dtype=precision.dtype, quantisation=precision.quantisation)


def _largest_layer(blueprint: Blueprint, precision: Precision) -> int:
    sizes = (sum(m.parameters for m in modules) for modules in _layers(blueprint).values())
    return max(sizes, default=0) * precision.element


def _dequantised(blueprint: Blueprint, precision: Precision) -> int:
    if precision.quantisation is None:
        return 0
    return max((m.d_in * m.d_out for m in blueprint.linears), default=0) * precision.element


def _head_weight(blueprint: Blueprint) -> str:
    name = f"{blueprint.head}.weight"
    return blueprint.tied.get(name, name)


# --- the closed form


def decoder_of(
    blueprint: Blueprint,
    change: Change,
    *,
    element: int = _FLOAT32,
    attention: Attention = "fused",
    masked: bool = False,
    checkpointing: bool = False,
    dropout: bool = False,
) -> Decoder | None:
    """Return a decoder's activations in closed form; None for a family or method without one."""
    if blueprint.model_type not in _LLAMA_LIKE or not blueprint.head:
        return None
    update = _Update.of(blueprint, change, dropout)
    if update is None:
        return None
    live = update.from_the_start
    layers: list[DecoderLayer] = []
    for own in _layers(blueprint).values():
        layers.append(_layer(blueprint, update, own, live))
        live = layers[-1].live
    embedding, head = f"{blueprint.embedding}.weight", _head_weight(blueprint)
    size = _FLOAT32 * blueprint.vocab * blueprint.hidden
    return Decoder(
        layers=tuple(layers),
        element=element,
        attention=attention,
        masked=masked,
        checkpointing=checkpointing,
        prompt=update.prompt,
        final_norm_trained=any(
            name in update.unfrozen and name.count(".") == 2 and "norm" in name
            for name in update.unfrozen
        ),
        first_gradients=size if head in update.unfrozen else 0,
        last_gradients=size if embedding in update.unfrozen and embedding != head else 0,
        last_scratch=size if embedding in update.unfrozen and embedding == head else 0,
    )


@dataclass(frozen=True)
class _Update:
    """A change by module: what the closed form needs of it."""

    unfrozen: frozenset[str]
    ranks: dict[str, int]
    dora: frozenset[str]
    bottlenecks: dict[str, int]
    added: dict[str, int]
    """Bytes of the gradients of what is added to a module."""
    prefix: int = 0
    prompt: int = 0
    from_the_start: bool = False
    dropout: bool = False

    @classmethod
    def of(cls, blueprint: Blueprint, change: Change, dropout: bool) -> _Update | None:
        """Read a change; None where it holds what has no closed form here."""
        ranks: dict[str, int] = {}
        dora: set[str] = set()
        bottlenecks: dict[str, int] = {}
        added: dict[str, int] = {}
        for group in change.groups:
            shapes = {part.name: part.shape for part in group.parts}
            rank = shapes.get("lora_A.weight", (0,))[0]
            width = shapes.get("adapter.down.weight", (0,))[0]
            known = {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight"}
            if not width and set(shapes) - known:
                return None
            for module in group.modules:
                added[module.name] = added.get(module.name, 0) + _FLOAT32 * group.trainable
                ranks[module.name] = rank
                if width:
                    bottlenecks[module.name] = width
                if "lora_magnitude_vector.weight" in shapes:
                    dora.add(module.name)
        prefix = prompt = 0
        for each in change.shared:
            rows = next((p.shape for p in each.parts if p.name == "embedding.weight"), None)
            if rows is None:
                return None
            prefix = rows[0]
            # A prompt's rows are as wide as the model's; a projected prefix has more parts.
            prompt = prefix if len(each.parts) == 1 and rows[1] == blueprint.hidden else 0
        tied = blueprint.tied
        return cls(
            frozenset(tied.get(name, name) for name in change.unfrozen),
            ranks, frozenset(dora), bottlenecks, added, prefix, prompt,
            from_the_start=bool(change.shared)
            or f"{blueprint.embedding}.weight" in change.unfrozen,
            dropout=dropout,
        )  # fmt: skip


def _layer(
    blueprint: Blueprint, update: _Update, own: list[Module], upstream: bool
) -> DecoderLayer:
    by_name = {module.short_name: module for module in own}

    def linear(*short: str) -> tuple[Linear, ...]:
        return tuple(
            Linear(
                module.d_in,
                module.d_out,
                rank=update.ranks.get(module.name, 0),
                dora=module.name in update.dora,
                dropout=update.dropout,
                trained=f"{module.name}.weight" in update.unfrozen,
                bias_trained=f"{module.name}.bias" in update.unfrozen,
            )
            for module in (by_name[one] for one in short if one in by_name)
        )

    norms = [module for module in own if module.kind == "norm"]
    sizes = {f"{module.name}.{key}": prod(shape) for module in own for key, shape in module.tensors}
    return DecoderLayer(
        attention=linear("q_proj", "k_proj", "v_proj", "qkv_proj"),
        output=linear("o_proj")[0],
        feed=linear("gate_proj", "up_proj", "gate_up_proj"),
        down=linear("down_proj")[0],
        heads=blueprint.heads,
        kv_heads=blueprint.kv_heads,
        head_dim=blueprint.head_dim,
        intermediate=blueprint.intermediate,
        norms_trained=any(f"{norm.name}.weight" in update.unfrozen for norm in norms),
        qk_norm="q_norm" in by_name,
        after_attention=update.bottlenecks.get(by_name["o_proj"].name, 0),
        after_feed=update.bottlenecks.get(by_name["down_proj"].name, 0),
        prefix=update.prefix,
        gradients=sum(update.added.get(module.name, 0) for module in own)
        + _FLOAT32 * sum(size for key, size in sizes.items() if key in update.unfrozen),
        upstream=upstream,
    )
