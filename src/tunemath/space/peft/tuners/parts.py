"""The parameters of a whole layer that a method adds."""

from __future__ import annotations

from tunemath.space.peft.change import Part

__all__ = ["linear_parts"]


def linear_parts(name: str, d_in: int, d_out: int) -> tuple[Part, Part]:
    """Return the weight and bias of a linear layer.

    >>> [part.parameters for part in linear_parts("transform.0", 32, 8)]
    [256, 8]
    """
    return Part(f"{name}.weight", (d_out, d_in)), Part(f"{name}.bias", (d_out,))
