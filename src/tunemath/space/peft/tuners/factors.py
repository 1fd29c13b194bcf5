"""What the factors A and B of a low-rank update lie between."""

from __future__ import annotations

from typing import NamedTuple

from tunemath.errors import ModelError
from tunemath.space.blueprint import Module
from tunemath.space.peft.config import AdapterConfig

__all__ = ["Widths", "widths"]


class Widths(NamedTuple):
    """A layer's inputs and outputs; of a convolution the channels, and the kernel."""

    d_in: int
    d_out: int
    kernel: tuple[int, ...] = ()


def widths(config: AdapterConfig, module: Module) -> Widths:
    """Return what a layer's factors lie between.

    Raises `ModelError` for a convolution whose filters have one input each: its weight has the same
    shape whether it is over one channel or depthwise, and the factors have not.

    >>> widths(AdapterConfig("LORA"), Module("conv", "conv", (("weight", (8, 4, 3, 5)),)))
    Widths(d_in=4, d_out=8, kernel=(3, 5))
    """
    if module.kind != "conv":
        return Widths(module.d_in, module.d_out)
    d_out, d_in, *kernel = module.shape
    if d_in == 1 < d_out:
        raise ModelError(
            f"{config.peft_type}: {module.name} is a convolution of weight {module.shape}, over "
            "one channel or depthwise, which the shape does not tell; leave it out"
        )
    return Widths(d_in, d_out, tuple(kernel))
