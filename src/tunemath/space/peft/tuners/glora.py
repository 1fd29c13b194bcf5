"""GLoRA: weight and bias scaled and shifted, ``W + W∘A + B`` and ``b + b∘D + E + W C``."""

from __future__ import annotations

from collections.abc import Iterator

from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import layers, one_of, uncounted, whole

__all__ = ["glora"]


def glora(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return GLoRA's five paths; C, D and E are there only where the layer has a bias.

    A and B have each ``r (d_in + d_out)`` as ``lora``, d_out as ``vector``, 1 as ``constant``;
    C has ``r (d_in + 1)`` as ``lora``, d_in as ``vector``; D and E have each d_out as ``vector``,
    1 as ``constant``; ``none`` is 0, though PEFT holds A and B as buffers of zeros then.

    Source: Chavan et al. 2023, arXiv 2306.07967.
    """
    weight = one_of(config, "config_A_B", ("lora", "vector", "constant", "none"))
    coupling = one_of(config, "config_C", ("lora", "vector", "none"))
    bias = one_of(config, "config_D_E", ("vector", "constant", "none"))
    r = whole(config, "r", least=0) if "lora" in (weight, coupling) else 0
    targets = layers(blueprint, config, "linear")
    groups = []
    for modules in grouped(targets).values():
        d_in, d_out = modules[0].d_in, modules[0].d_out
        of_weight = {"lora": r * (d_in + d_out), "vector": d_out, "constant": 1, "none": 0}
        of_coupling = {"lora": r * (d_in + 1), "vector": d_in, "none": 0}
        of_bias = {"vector": d_out, "constant": 1, "none": 0}
        trainable = 2 * of_weight[weight]
        if modules[0].bias:
            trainable += of_coupling[coupling] + 2 * of_bias[bias]
        parts = tuple(_parts(modules[0], weight, coupling, bias, r))
        groups.append(Group(modules, parts, trainable))
    zeros = 2 * sum(m.d_in * m.d_out for m in targets) if weight == "none" else 0
    notes = (uncounted("the zeros that stand for A and B", zeros),) if zeros else ()
    return Change(tuple(groups), notes=notes)


def _parts(module: Module, weight: str, coupling: str, bias: str, r: int) -> Iterator[Part]:
    d_in, d_out = module.d_in, module.d_out
    for path in ("glora_A", "glora_B"):
        yield from _path(path, weight, r, d_out, d_in)
    if module.bias:
        yield from _path("glora_C", coupling, r, d_in, 1)
        for path in ("glora_D", "glora_E"):
            yield from _path(path, bias, r, d_out)


def _path(name: str, form: str, r: int, rows: int, columns: int | None = None) -> Iterator[Part]:
    """Yield the parameters of a path to a matrix, or to a vector where ``columns`` is None."""
    if form == "lora" and columns is not None:
        yield Part(f"{name}.Xd", (rows, r))
        yield Part(f"{name}.Xu", (r, columns))
    elif form == "vector":
        yield Part(f"{name}.X", (rows,) if columns is None else (rows, 1))
    elif form == "constant":
        yield Part(f"{name}.X", (1,))
