"""What a method on a model costs in memory: from its blueprint and ledger to the budget's records.

The passes of Llama's relatives follow from their shapes; other families are traced once, which
needs torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Literal

from tunemath.budget import DTYPES, Activations, Held, Training, weight_bytes
from tunemath.budget.optimizers import Tensors
from tunemath.errors import ModelError
from tunemath.pipeline.decoders import (
    Precision,
    Setting,
    decoder_of,
    head_weight,
    layers_in,
    rough_decoder_of,
    virtual_places,
)
from tunemath.space import Blueprint, Ledger

__all__ = ["Precision", "Setting", "held_of", "saved_bytes", "training_of"]

_FLOAT32 = 4


def held_of(
    ledger: Ledger,
    setting: Setting | None = None,
    *,
    traced: Callable[[], Activations] | None = None,
    trace: bool = False,
    peft_type: str = "LORA",
) -> Held:
    """Return what a method on a model holds.

    ``traced`` gives the activations of a family or method that has no closed form, and with
    ``trace`` those of any. What can't be traced is taken for a model like Llama, roughly, with what
    the adapted layers of a ``peft_type`` keep.
    """
    setting = setting or Setting()
    blueprint, precision = ledger.blueprint, setting.precision
    closed = None if trace else decoder_of(blueprint, ledger.change, setting)
    activations: Activations
    if closed is not None:
        activations, source, why = closed, "closed form", ""
    else:
        activations, source, why = _traced_or_rough(ledger, setting, traced, peft_type)
    added, copied = _added(ledger)
    names = {blueprint.tied.get(name, name) for name in ledger.change.unfrozen}
    has_head = bool(blueprint.head)
    _, prompt = virtual_places(blueprint, ledger.change) or (0, 0)
    head_trained = has_head and head_weight(blueprint) in names
    return Held(
        base=_base_bytes(ledger, precision),
        added=added,
        copied=copied,
        copied_width=precision.trained if precision.mixing == "pure" else DTYPES[precision.held],
        unfrozen=ledger.unfrozen,
        trained=precision.trained,
        hidden=blueprint.hidden,
        vocab=blueprint.vocab if has_head else 0,
        activations=activations,
        head_trained=head_trained,
        head_copy=_head_copy(blueprint, precision, head_trained) if has_head else 0,
        prompt=prompt if setting.prompt_in_rows else 0,
        largest_layer=_largest_layer(blueprint, precision),
        dequantised=_dequantised(blueprint, precision),
        element=precision.element,
        error=_ROUGH if source == "rough" else _ERROR[precision.element],
        source=source,
        why=why,
    )


# The trained copies of modules, by the beginnings of their parts' names in PEFT.
_COPIES = ("modules_to_save.", "ln_tuning_layers.")


def _added(ledger: Ledger) -> tuple[Tensors, Tensors]:
    """Return the shapes of what a method adds, and of its copies of the base's modules."""
    own: Counter[tuple[int, ...]] = Counter()
    copied: Counter[tuple[int, ...]] = Counter()
    given = [(group.parts, len(group.modules)) for group in ledger.change.groups]
    for parts, count in [*given, *((each.parts, 1) for each in ledger.change.shared)]:
        for part in parts:
            if part.trainable:
                (copied if part.name.startswith(_COPIES) else own)[part.shape] += count
    return tuple(own.items()), tuple(copied.items())


# The relative error of the activations' bytes, by the bytes of a number.
_ERROR = {4: 0.05, 2: 0.1}
_ROUGH = 0.3


def _traced_or_rough(
    ledger: Ledger,
    setting: Setting,
    traced: Callable[[], Activations] | None,
    peft_type: str,
) -> tuple[Activations, Literal["traced", "rough"], str]:
    why = ""
    if traced is not None:
        try:
            return traced(), "traced", ""
        except ModelError as error:
            why = str(error)
    return rough_decoder_of(ledger, setting, peft_type), "rough", why


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
        head_trained=head_weight(blueprint) in unfrozen,
        depth=_depth(ledger),
    )


def saved_bytes(ledger: Ledger, width: int = _FLOAT32) -> int:
    """Return the bytes of the update on disk, of ``width`` a number, without its header.

    A model that is trained in full is saved whole.
    """
    whole = {name for name, _ in ledger.blueprint.tensors()} <= ledger.change.unfrozen
    return width * (ledger.total if whole else ledger.trainable)


def _depth(ledger: Ledger) -> float:
    """Return the share of the layers that lie above the lowest trained tensor."""
    blueprint, change = ledger.blueprint, ledger.change
    if change.shared or f"{blueprint.embedding}.weight" in change.unfrozen:
        return 1.0
    layers = layers_in(blueprint)
    if len({stack for stack, _ in layers}) != 1:
        return 1.0  # encoders, towers: the lowest may lie anywhere
    owners = {module.name for module in change.targets} | {
        name.rpartition(".")[0] for name in change.unfrozen
    }
    for below, modules in enumerate(layers.values()):
        if any(module.name in owners for module in modules):
            return 1 - below / len(layers)
    return 0.0


def _base_bytes(ledger: Ledger, precision: Precision) -> int:
    """Return the bytes of the base's weights; those that are trained are held as trained."""
    blueprint = ledger.blueprint
    parameters = ledger.total - sum(prod(shape) * count for shape, count in ledger.added)
    unfrozen = sum(prod(shape) * count for shape, count in ledger.unfrozen)
    linears: list[tuple[tuple[int, ...], int]] = []
    if precision.quantisation is not None:
        names = ledger.change.unfrozen
        frozen = (one for one in blueprint.linears if f"{one.name}.weight" not in names)
        linears = [((linear.d_out, linear.d_in), 1) for linear in frozen]
    others = parameters - unfrozen - sum(prod(shape) for shape, _ in linears)
    held = weight_bytes(linears, others, dtype=precision.held, quantisation=precision.quantisation)
    return held + precision.trained * unfrozen


def _head_copy(blueprint: Blueprint, precision: Precision, trained: bool) -> int:
    """Return the bytes of an output layer's weight as autocast casts it from float32."""
    casts = precision.mixing == "autocast" and precision.element != _FLOAT32
    wide = trained or precision.held == "float32"
    return precision.element * blueprint.vocab * blueprint.hidden if casts and wide else 0


def _largest_layer(blueprint: Blueprint, precision: Precision) -> int:
    sizes = (sum(m.parameters for m in modules) for modules in layers_in(blueprint).values())
    return max(sizes, default=0) * DTYPES[precision.held]


def _dequantised(blueprint: Blueprint, precision: Precision) -> int:
    if precision.quantisation is None:
        return 0
    return max((m.d_in * m.d_out for m in blueprint.linears), default=0) * precision.element
