"""OFT, BOFT and HRA: the input of a layer rotated before its frozen weight meets it."""

from __future__ import annotations

from collections.abc import Iterable

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Kind, Module
from tunemath.space.peft.change import Change, Group, Part, grouped
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.tuners.factors import refuse_groups, widths
from tunemath.space.peft.tuners.settings import layers, uncounted, whole
from tunemath.space.peft.tuners.targets import require_dimensions

__all__ = ["boft", "hra", "near_divisor", "oft"]


def oft(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return OFT's skew-symmetric blocks: ``d (b - 1) / 2`` a layer, shared ``b (b - 1) / 2``.

    Let d be the width of a layer's input (of an embedding, of a row) and b that of a block, or of
    one of r blocks; b divides d. What does not divide it is moved to the nearest divisor, as in
    PEFT.

    Source: Qiu et al. 2023, arXiv 2306.07280.
    """
    size, number = _size_or_number(config, "oft_block_size", "r")
    groups = []
    for modules in _alike(blueprint, config, "linear", "conv", "embedding"):
        d = _input_width(config, modules[0])
        b = near_divisor(d, size) if size else d // near_divisor(d, number)
        blocks = 1 if config["block_share"] else d // b
        name = "oft_embedding_R" if modules[0].kind == "embedding" else "oft_R"
        parts = (Part(f"{name}.weight", (blocks, b * (b - 1) // 2)),)
        trainable = (b if config["block_share"] else d) * (b - 1) // 2
        groups.append(Group(modules, parts, trainable))
    return Change(tuple(groups))


def boft(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return BOFT's whole blocks and a scale for each output: ``d b + d_out`` a layer.

    Let d be the width of a layer's input and b that of a block, which divides it: R is
    (1, d / b, b, b). PEFT has more butterfly factors than one only where it can build its CUDA
    extension, and silently takes one elsewhere; one is counted.

    Source: Liu et al. 2023, arXiv 2311.06243.
    """
    size, number = _size_or_number(config, "boft_block_size", "boft_block_num")
    m = whole(config, "boft_n_butterfly_factor", least=0)
    groups, factor, permutations = [], 0, 0
    for modules in _alike(blueprint, config, "linear", "conv"):
        refuse_groups(config, modules[0])
        d, d_out = _input_width(config, modules[0]), _outputs(modules[0])
        if d % (size or number):
            name, value = ("boft_block_size", size) if size else ("boft_block_num", number)
            raise ModelError(
                f"BOFT has {name} {value}, and the input of {modules[0].name} is {d} wide; set "
                f"{name} to a divisor of it, such as {near_divisor(d, value)}"
            )
        b = size or d // number
        parts = (Part("boft_R", (1, d // b, b, b)), Part("boft_s", (d_out, 1)))
        groups.append(Group(modules, parts, d * b + d_out))
        factor += len(modules) * d * b
        permutations += len(modules) * d**2
    notes = [uncounted("the permutations", permutations)]
    if m > 1:
        notes.append(
            "one butterfly factor is counted, as PEFT has without its CUDA extension; with it each "
            f"of boft_n_butterfly_factor {m} has {factor:,} parameters"
        )
    return Change(tuple(groups), notes=tuple(notes))


def hra(blueprint: Blueprint, config: AdapterConfig) -> Change:
    """Return the r vectors of HRA's Householder reflections, U (d, r): ``r d`` a layer.

    Let d be the width of a layer's input.

    Source: Yuan et al. 2024, arXiv 2405.17484.
    """
    r = whole(config, "r")
    groups = []
    for modules in _alike(blueprint, config, "linear", "conv"):
        refuse_groups(config, modules[0])
        d = _input_width(config, modules[0])
        groups.append(Group(modules, (Part("hra_u", (d, r)),), r * d))
    return Change(tuple(groups))


def near_divisor(width: int, wanted: int) -> int:
    """Return the divisor of a width that is nearest; of two that are equally near, the smaller.

    >>> near_divisor(48, 32), near_divisor(48, 20), near_divisor(48, 12), near_divisor(48, 99)
    (24, 16, 12, 48)
    """
    if wanted >= width:
        return width
    lower = next(n for n in range(wanted, 0, -1) if width % n == 0)
    upper = next(n for n in range(wanted, width + 1) if width % n == 0)
    return lower if wanted - lower <= upper - wanted else upper


def _alike(
    blueprint: Blueprint, config: AdapterConfig, *kinds: Kind
) -> Iterable[tuple[Module, ...]]:
    """Return the targets that are alike, together."""
    return grouped(require_dimensions(layers(blueprint, config, *kinds), config, 2)).values()


def _input_width(config: AdapterConfig, module: Module) -> int:
    """Return what is rotated; of a convolution it is a square patch, so wide as it is high."""
    if module.kind == "conv":
        return widths(config, module).d_in * module.shape[2] ** 2
    return module.d_out if module.kind == "embedding" else module.d_in


def _outputs(module: Module) -> int:
    return module.shape[0] if module.kind == "conv" else module.d_out


def _size_or_number(config: AdapterConfig, size: str, number: str) -> tuple[int, int]:
    """Return the blocks' size and their number, one of which is given and the other 0."""
    both = whole(config, size, least=0), whole(config, number, least=0)
    if (both[0] == 0) == (both[1] == 0):
        raise ModelError(
            f"{config.peft_type} has {size} {both[0]} and {number} {both[1]}, and their product is "
            "the width of a layer; give one and set the other to 0"
        )
    return both
