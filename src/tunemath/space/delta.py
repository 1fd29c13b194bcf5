"""The update that a pair of LoRA factors stands for (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from typing import Any

from tunemath.arrays import numeric, plain
from tunemath.errors import ShapeError

__all__ = ["check_factors", "lora_delta"]


def lora_delta(A: Any, B: Any, scale: float = 1.0) -> Any:
    """Return the weight update of a LoRA module.

    Let W (d_out, d_in) be the frozen weight, so that the layer is y = W x: ``ΔW = s·B A``.

    ``A`` (…, r, d_in); ``B`` (…, d_out, r); ``scale`` is s, which is α/r, or α/√r for rsLoRA.
    Returns (…, d_out, d_in), the shape of W.

    >>> lora_delta([[1.0, 2.0, 3.0]], [[1.0], [10.0]], scale=2.0).tolist()
    [[2.0, 4.0, 6.0], [20.0, 40.0, 60.0]]

    Source: Hu et al. 2021, section 4.1.
    """
    xp, a, b = numeric(A, B)
    check_factors(a, b)
    return plain(scale * xp.matmul(b, a))


def check_factors(a: Any, b: Any) -> None:
    """Refuse LoRA factors that don't go together, and say if they look swapped or transposed."""
    given = f"A {tuple(a.shape)} and B {tuple(b.shape)} do not go together"
    expected = "expected A (r, d_in) and B (d_out, r)"
    if a.ndim < 2 or b.ndim < 2:
        raise ShapeError(f"{given}; {expected}, each with two axes")
    if a.shape[-2] == b.shape[-1]:
        return
    if a.shape[-1] == b.shape[-2]:
        hint = "they look swapped: pass the other one first"
    elif a.shape[-1] == b.shape[-1]:
        hint = "A looks transposed"
    elif a.shape[-2] == b.shape[-2]:
        hint = "B looks transposed"
    else:
        hint = f"the ranks differ: {a.shape[-2]} in A, {b.shape[-1]} in B"
    raise ShapeError(f"{given}; {expected}; {hint}")
