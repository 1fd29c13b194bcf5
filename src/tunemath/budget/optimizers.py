"""What an optimizer holds for each trained tensor, and what its step needs besides."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

__all__ = ["OPTIMIZERS", "Tensors", "state_bytes", "step_bytes"]

Tensors = Iterable[tuple[tuple[int, ...], int]]
"""Trained tensors: a shape, and how many have it."""

_FLOAT32 = 4
# bitsandbytes: one float32 scale for so many 8-bit numbers; smaller tensors stay in 32 bits.
_BLOCK, _SMALL = 256, 4096


@dataclass(frozen=True)
class _Optimizer:
    moments: int
    """Arrays as large as the tensor."""
    counter: bool = False
    """Whether each tensor has one float32 more: its steps, or its size."""
    eight_bit: bool = False
    factored: bool = False
    matrices_only: bool = False
    follows: bool = False
    """Whether the moments are of the tensor's dtype; bitsandbytes' and Adafactor's are float32."""
    temporaries: int = 0
    """Arrays as large as the largest tensor that a step makes on a CPU."""


_KNOWN = {
    "adamw": _Optimizer(2, counter=True, follows=True, temporaries=2),
    "adamw_8bit": _Optimizer(2, eight_bit=True),
    "paged_adamw": _Optimizer(2),
    "paged_adamw_8bit": _Optimizer(2, eight_bit=True),
    "adafactor": _Optimizer(1, counter=True, factored=True, temporaries=2),
    "sgd": _Optimizer(0),
    "lion": _Optimizer(1),
    "lion_8bit": _Optimizer(1, eight_bit=True),
    "muon": _Optimizer(1, matrices_only=True, follows=True, temporaries=4),
}

OPTIMIZERS = tuple(_KNOWN)
"""Every optimizer whose memory is known."""


def state_bytes(optimizer: str, tensors: Tensors, *, width: int = _FLOAT32) -> int:
    """Return the bytes that an optimizer holds between steps, exactly; ``width`` of a number.

    A tensor of n float32 elements costs: ``adamw`` ``8 n + 4`` (two moments and a counter),
    ``paged_adamw`` ``8 n``, ``lion`` ``4 n``, ``sgd`` (without momentum) 0; the ``_8bit`` forms
    ``m (n + 4 ⌈n/256⌉)`` with m moments, or ``4 m n`` where n < 4096; ``adafactor`` without first
    moment one number a row, one a column and one more, and ``4 n + 4`` for a vector; ``muon``
    ``4 n`` for a matrix, and AdamW's for the rest. In half precision the moments of ``adamw`` and
    ``muon`` take half, the others' as much.

    >>> state_bytes("adamw", [((64, 576), 2)])
    589832

    Source: torch.optim.AdamW and Muon; transformers.optimization.Adafactor; bitsandbytes'
    blockwise optimizers (Dettmers et al. 2021, arXiv 2110.02861).
    """
    rule = _rule(optimizer)
    return sum(count * _state(rule, shape, width) for shape, count in tensors)


def step_bytes(
    optimizer: str, tensors: Tensors, *, width: int = _FLOAT32, device: str = "cpu"
) -> int:
    """Return the bytes that a step makes and forgets.

    On a CPU tensors are stepped one by one, and the largest decides; elsewhere AdamW steps all of
    them together, with one array as large as the trained parameters.
    """
    rule, sizes = _rule(optimizer), [(prod(shape), count) for shape, count in tensors]
    if device != "cpu" and optimizer == "adamw":
        return width * sum(size * count for size, count in sizes)
    return width * rule.temporaries * max((size for size, _ in sizes), default=0)


def _rule(optimizer: str) -> _Optimizer:
    if optimizer not in _KNOWN:
        near = difflib.get_close_matches(optimizer, OPTIMIZERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(OPTIMIZERS)}"
        raise ValueError(f"optimizer {optimizer!r} is not known; {hint}")
    return _KNOWN[optimizer]


def _state(rule: _Optimizer, shape: tuple[int, ...], width: int) -> int:
    n = prod(shape)
    if rule.factored and len(shape) > 1:
        return _FLOAT32 * (n // shape[-1] + n // shape[-2] + rule.counter)
    if rule.matrices_only and len(shape) != 2:
        return _state(_KNOWN["adamw"], shape, width)
    if rule.eight_bit and n >= _SMALL:
        return rule.moments * (n + _FLOAT32 * -(-n // _BLOCK))
    moment = width if rule.follows else _FLOAT32
    return moment * rule.moments * n + _FLOAT32 * rule.counter
