"""What the factors A and B of a low-rank update lie between."""

from __future__ import annotations

from typing import NamedTuple

from tunemath.errors import ModelError
from tunemath.space.blueprint import Module
from tunemath.space.peft.config import AdapterConfig

__all__ = ["Widths", "refuse_groups", "widths"]


class Widths(NamedTuple):
    """A layer's inputs and outputs; of a convolution the channels, the kernel and the groups."""

    d_in: int
    d_out: int
    kernel: tuple[int, ...] = ()
    groups: int = 1


def widths(config: AdapterConfig, module: Module) -> Widths:
    """Return what a layer's factors lie between: of a convolution all channels of every group.

    Raises `ModelError` for a convolution of unknown groups: the weight of one over a single channel
    has the shape of a depthwise one, and the factors have not.

    >>> grouped = Module("conv", "conv", (("weight", (8, 4, 3, 5)),), groups=2)
    >>> widths(AdapterConfig("LORA"), grouped)
    Widths(d_in=8, d_out=8, kernel=(3, 5), groups=2)
    """
    if module.kind != "conv":
        return Widths(module.d_in, module.d_out)
    d_out, per_group, *kernel = module.shape
    if module.groups is None:
        raise ModelError(
            f"{config.peft_type}: {module.name} is a convolution of weight {module.shape}, over "
            "one channel or depthwise, which the shape does not tell; give the model's config.json "
            "too, or leave the layer out"
        )
    return Widths(per_group * module.groups, d_out, tuple(kernel), module.groups)


def refuse_groups(config: AdapterConfig, module: Module) -> None:
    """Raise for a convolution whose channels fall into groups, which some types can't adapt."""
    groups = widths(config, module).groups
    if groups > 1:
        raise ModelError(
            f"{config.peft_type} can't adapt a convolution of groups; that of {module.name} has "
            f"{groups}; leave it out of target_modules"
        )
