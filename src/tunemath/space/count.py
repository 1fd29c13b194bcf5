"""How many parameters a method trains: closed forms, each checked against the sum of its parts."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from tunemath.arrays import positive
from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Linear
from tunemath.space.record import UpdateSpace

__all__ = [
    "LoraLedger",
    "TargetRow",
    "adapter_parameter_count",
    "lora_ledger",
    "lora_parameter_count",
    "prefix_parameter_count",
    "resolve_targets",
]


def lora_parameter_count(d_in: int, d_out: int, rank: int) -> int:
    """Return the parameters of LoRA on one linear layer.

    Let A be (r, d_in) and B (d_out, r): ``r (d_in + d_out)``. A layer's bias stays frozen.

    >>> lora_parameter_count(4096, 4096, rank=8)
    65536

    Source: Hu et al. 2021, arXiv 2106.09685.
    """
    d_in, d_out, rank = positive(d_in=d_in, d_out=d_out, rank=rank)
    return rank * (d_in + d_out)


def adapter_parameter_count(d_model: int, bottleneck: int, bias: bool = False) -> int:
    """Return the parameters of one bottleneck adapter, ``h + W_up σ(W_down h)``.

    Let d be d_model and m the bottleneck: ``2 d m``, and ``+ m + d`` with biases. A transformer
    layer may hold two of them.

    >>> adapter_parameter_count(1024, 32), adapter_parameter_count(1024, 32, bias=True)
    (65536, 66592)

    Source: Houlsby et al. 2019, arXiv 1902.00751.
    """
    d, m = positive(d_model=d_model, bottleneck=bottleneck)
    return 2 * d * m + (m + d if bias else 0)


def prefix_parameter_count(layers: int, prefix_length: int, kv_heads: int, head_dim: int) -> int:
    """Return the parameters of a trained key-value prefix, ``K′ = [K_p; K]``, ``V′ = [V_p; V]``.

    Let L be layers, P prefix_length, K kv_heads and d head_dim: ``2 L P K d``, a key and a value
    for each layer, place and KV head. Under grouped-query attention K is fewer than the heads.

    >>> prefix_parameter_count(24, 16, 16, 64)
    786432

    Valid when the prefix is trained directly, without a reparametrising network.

    Source: Li and Liang 2021, arXiv 2101.00190.
    """
    numbers = positive(
        layers=layers, prefix_length=prefix_length, kv_heads=kv_heads, head_dim=head_dim
    )
    layers, prefix_length, kv_heads, head_dim = numbers
    return 2 * layers * prefix_length * kv_heads * head_dim


class TargetRow(TypedDict):
    """The LoRA parameters of all targets that share a short name and a shape."""

    name: str
    modules: int
    d_in: int
    d_out: int
    rank: int
    parameters: int


@dataclass(frozen=True)
class LoraLedger:
    """What LoRA adds to a model, in parameters."""

    by_target: tuple[TargetRow, ...]
    base: int
    trainable: int

    @property
    def total(self) -> int:
        """Base and adapter together, as PEFT counts."""
        return self.base + self.trainable

    @property
    def percent(self) -> float:
        """100 · trainable / total."""
        return 100 * self.trainable / self.total


def lora_ledger(blueprint: Blueprint, space: UpdateSpace) -> LoraLedger:
    """Return the exact parameter count of LoRA on a model, by target.

    Let T be the targets: ``Σ_{t ∈ T} r (d_in + d_out)``, held against the sizes of every A and B.
    """
    targets = resolve_targets(blueprint, space.targets)
    groups = Counter((linear.short_name, linear.d_in, linear.d_out) for linear in targets)
    rows = tuple(
        TargetRow(
            name=name,
            modules=modules,
            d_in=d_in,
            d_out=d_out,
            rank=space.rank,
            parameters=modules * lora_parameter_count(d_in, d_out, space.rank),
        )
        for (name, d_in, d_out), modules in groups.items()
    )
    trainable = sum(row["parameters"] for row in rows)
    parts = sum(space.rank * linear.d_in + linear.d_out * space.rank for linear in targets)
    if trainable != parts:
        raise AssertionError(f"the closed form gives {trainable} parameters, its parts {parts}")
    return LoraLedger(rows, blueprint.parameters, trainable)


def resolve_targets(blueprint: Blueprint, targets: str | Sequence[str]) -> tuple[Linear, ...]:
    """Return the linear layers that the contract's targets name, by PEFT's rule.

    ``all-linear`` is every linear layer but the head. A name matches the module of that full name
    and every module whose name ends in a dot and it. A name that matches none raises.
    """
    if targets == "all-linear":
        return blueprint.linears
    names = [targets] if isinstance(targets, str) else list(targets)
    if not names:
        raise ModelError(f"space.targets is empty; expected all-linear, or {_choices(blueprint)}")
    for name in names:
        if not any(_matches(linear, name) for linear in blueprint.linears):
            raise ModelError(_unmatched(blueprint, name))
    return tuple(
        linear for linear in blueprint.linears if any(_matches(linear, name) for name in names)
    )


def _matches(linear: Linear, target: str) -> bool:
    return linear.name == target or linear.name.endswith(f".{target}")


def _choices(blueprint: Blueprint) -> str:
    return ", ".join(dict.fromkeys(linear.short_name for linear in blueprint.linears))


def _unmatched(blueprint: Blueprint, name: str) -> str:
    short = sorted({linear.short_name for linear in blueprint.linears})
    known = sorted({linear.name for linear in blueprint.linears}) if "." in name else short
    near = difflib.get_close_matches(name, known, n=3)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    return (
        f"space.targets: {name!r} matches no linear layer of this {blueprint.model_type} "
        f"model.{meant} It has {_choices(blueprint)}"
    )
