"""LoHa and LoKr of LyCORIS: Hadamard and Kronecker products, for linear layers and convolutions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isqrt, prod

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.settings import layers, rank_of, whole

__all__ = ["loha", "lokr"]


def loha(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return LoHa's two pairs of factors, ``(X₁ Y₁) ∘ (X₂ Y₂)``: ``2 r (d_in + d_out)`` a layer.

    Of a convolution d_in is the weight's inputs times the k places of its kernel; with
    ``use_effective_conv2d`` and k > 1 d_in is the inputs alone and each pair has a core (r, r, …):
    ``2 (r (d_in + d_out) + k r²)``.

    Source: Hyeon-Woo et al. 2021, arXiv 2108.06098 (propositions 1 and 3).
    """
    groups = []
    for modules in _alike(blueprint, config):
        r = rank_of(config, modules[0])
        d_out, d_in, *kernel = modules[0].shape
        k = prod(kernel)
        if config["use_effective_conv2d"] and k > 1:
            cores = tuple(Part(f"hada_t{i}", _core(kernel, r)) for i in (1, 2))
            sides = {"a": (r, d_out), "b": (r, d_in)}
            trainable = 2 * (r * (d_in + d_out) + k * r**2)
        else:
            cores = ()
            sides = {"a": (d_out, r), "b": (r, k * d_in)}
            trainable = 2 * r * (k * d_in + d_out)
        pairs = (Part(f"hada_w{i}_{side}", sides[side]) for i in (1, 2) for side in sides)
        groups.append(Group(modules, (*cores, *pairs), trainable))
    return Change(tuple(groups))


def lokr(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return LoKr's Kronecker product ``W₁ ⊗ W₂``, each factor whole or of rank r.

    Let d_out = a·b and d_in = c·d, split near their square roots or at ``decompose_factor``, and k
    the places of a convolution's kernel. W₁ (a, c) is whole, ``a c``, but with ``decompose_both``
    and r < max(a, c) / 2 of rank r, ``r (a + c)``. W₂ (b, d, …) is whole, ``k b d``, where
    r ≥ max(b, d) / 2, and otherwise ``r (b + k d)``, with ``use_effective_conv2d`` and k > 1
    ``r (b + d) + k r²``.

    Source: Yeh et al. 2023, arXiv 2309.14859.
    """
    groups = []
    near = whole(config, "decompose_factor", least=-1)
    for modules in _alike(blueprint, config):
        r = rank_of(config, modules[0])
        d_out, d_in, *kernel = modules[0].shape
        (a, b), (c, d) = (split(n, near) for n in (d_out, d_in))
        k = prod(kernel)
        if config["decompose_both"] and r < max(a, c) / 2:
            first = r * (a + c)
            parts = (Part("lokr_w1_a", (a, r)), Part("lokr_w1_b", (r, c)))
        else:
            first = a * c
            parts = (Part("lokr_w1", (a, c)),)
        if r >= max(b, d) / 2:
            second = k * b * d
            parts += (Part("lokr_w2", (b, d, *kernel)),)
        elif config["use_effective_conv2d"] and k > 1:
            second = r * (b + d) + k * r**2
            parts += (Part("lokr_t2", _core(kernel, r)),)
            parts += (Part("lokr_w2_a", (r, b)), Part("lokr_w2_b", (r, d)))
        else:
            second = r * (b + k * d)
            parts += (Part("lokr_w2_a", (b, r)), Part("lokr_w2_b", (r, k * d)))
        groups.append(Group(modules, parts, first + second))
    return Change(tuple(groups))


def split(width: int, near: int = -1) -> tuple[int, int]:
    """Return a width as a product of two: the first is ``near`` where that divides it.

    Otherwise the first is the largest divisor up to the square root, and up to ``near`` unless
    that is −1.

    >>> split(256), split(128), split(127), split(128, 4), split(128, 64), split(128, 7)
    ((16, 16), (8, 16), (1, 127), (4, 32), (64, 2), (4, 32))
    """
    if near > 0 and width % near == 0:
        return near, width // near
    most = isqrt(width) if near == -1 else min(isqrt(width), near)
    first = next((n for n in range(most, 1, -1) if width % n == 0), 1)
    return first, width // first


def _alike(blueprint: Blueprint, config: AdapterConfig) -> Iterable[tuple[Module, ...]]:
    """Return the targets that are alike in kind, shape and rank, together."""
    targets = layers(blueprint, config, "linear", "conv")
    for module in targets:
        if len(module.shape) > 4:
            raise ModelError(
                f"{config.peft_type} takes convolutions of one or two dimensions; {module.name} "
                f"has a weight of shape {module.shape}; leave it out of target_modules"
            )
    return grouped(targets, lambda m: (m[1:], rank_of(config, m))).values()


def _core(kernel: Sequence[int], r: int) -> tuple[int, ...]:
    """Return the shape of a convolution's core; PEFT gives one of one dimension a second of 1."""
    return (r, r, *kernel, *[1] * (2 - len(kernel)))
