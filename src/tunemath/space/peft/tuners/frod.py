"""FRoD: a weight as ``U (S + Λ) Vᵀ``, with U and V fixed and few of S's entries trained."""

from __future__ import annotations

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import fraction, layers, uncounted

__all__ = ["frod"]


def frod(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return FRoD's diagonal Λ (d_in,) and the trained entries of S off it: ``d_in + s`` a layer.

    Let ρ be ``sparse_rate``: ``s = min(⌊ρ d_in²⌋, d_in² − d_in)``, and 1 at least unless ρ is 0.
    U (d_out, d_in) of each layer and V (d_in, d_in) of each kind of layer are computed from the
    weights, frozen, and buffers in PEFT.

    Source: doi 10.1609/aaai.v40i31.39813.
    """
    rate = fraction(config, "sparse_rate")
    targets = layers(blueprint, config, "linear", "conv1d")
    bases = _bases(targets)
    groups = []
    for modules in grouped(targets).values():
        d_in = modules[0].d_in
        s = _entries(d_in, rate)
        parts = (Part("frod_lambda_l", (d_in,)), Part("frod_lambda_s_values", (s,)))
        groups.append(Group(modules, parts, d_in + s))
    fixed = sum(m.d_in * m.d_out for m in targets) + sum(width**2 for width in bases.values())
    return Change(tuple(groups), notes=(uncounted("the fixed factors U and V", fixed),))


def _entries(width: int, rate: float) -> int:
    """Return how many entries off the diagonal of a square matrix are trained.

    >>> _entries(32, 0.01), _entries(4, 0.01), _entries(4, 1.0), _entries(4, 0.0)
    (10, 1, 12, 0)
    """
    most = width * width - width
    if not rate or not most:
        return 0
    return max(1, min(int(width * width * rate), most))


def _bases(targets: tuple[Module, ...]) -> dict[str, int]:
    """Return the width of V for each kind of layer; layers of a kind must take the same input."""
    widths: dict[str, int] = {}
    first: dict[str, str] = {}
    for module in targets:
        kind = _kind(module.name)
        if widths.setdefault(kind, module.d_in) != module.d_in:
            raise ModelError(
                f"FROD shares a basis among layers of the kind {kind!r}, which must be of one "
                f"input width; {first[kind]} takes {widths[kind]} and {module.name} "
                f"{module.d_in}; target only one of them"
            )
        first.setdefault(kind, module.name)
    return widths


def _kind(name: str) -> str:
    """Return what PEFT takes a layer to be from its name; layers of a kind share V.

    >>> _kind("model.layers.0.self_attn.q_proj"), _kind("model.encoder.layers.0.fc1")
    ('self_attn_q_proj', 'fc1')
    >>> _kind("encoder.layer.0.attention.output.dense"), _kind("encoder.layer.0.output.dense")
    ('attention_output', 'output_dense')
    """
    parts = name.split(".")
    if len(parts) == 1 or parts[-2].isdigit():
        return parts[-1]
    if parts[-3:] == ["attention", "output", "dense"]:
        return "attention_output"
    return f"{parts[-2]}_{parts[-1]}"
