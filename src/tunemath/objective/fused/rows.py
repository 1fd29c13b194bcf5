"""Which rows count: they alone are multiplied, in the order of their targets."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from tunemath.errors import MaskError, ShapeError

__all__ = ["Rows", "check_states", "eager", "select", "select_targets", "spread"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

F = TypeVar("F", bound=Callable[..., Any])


class Rows(NamedTuple):
    """The rows that count, sorted by target."""

    hidden: Tensor
    """(n, D), with gradient."""
    ids: Tensor
    """(n,) targets; zeros where there are none."""
    where: Tensor
    """(n,) positions in the flattened batch."""
    shape: tuple[int, ...]
    """The batch's own shape."""


def select(hidden: Tensor, mask: Tensor | None, head: Tensor) -> Rows:
    """Gather the rows of ``hidden`` (…, D) that the mask (…) selects."""
    where = _positions(hidden, mask, head)
    return _rows(hidden, where, where.new_zeros(len(where)))


def select_targets(
    hidden: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    head: Tensor,
    weights: Tensor | None = None,
) -> Rows:
    """Gather the rows that the mask (…) selects and that weigh something, sorted by target."""
    where = _positions(hidden, mask, head)
    shape = tuple(hidden.shape[:-1])
    integers = isinstance(targets, Tensor) and targets.dtype in _INTEGERS
    if not integers or tuple(targets.shape) != shape:
        raise ShapeError(
            f"targets are {_said(targets)}; expected integers of shape {shape}, as hidden "
            f"{tuple(hidden.shape)} has, both after the shift by one token"
        )
    if weights is not None:
        if not isinstance(weights, Tensor) or tuple(weights.shape) != shape:
            given = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise ShapeError(f"weights {given} and targets {shape} differ; expected one a target")
        where = where[weights.reshape(-1)[where] != 0]
    ids = targets.reshape(-1)[where].to(torch.int64)
    _check(ids, len(head), masked=mask is not None)
    ids, order = torch.sort(ids, stable=True)
    return _rows(hidden, where[order], ids)


def spread(values: Tensor, rows: Rows) -> Tensor:
    """Return values (n,) at their places in the batch (…), 0 where nothing counts."""
    flat = values.new_zeros(math.prod(rows.shape))
    return flat.index_copy(0, rows.where, values).reshape(rows.shape)


def _rows(hidden: Tensor, where: Tensor, ids: Tensor) -> Rows:
    flat = hidden.reshape(-1, hidden.shape[-1]).index_select(0, where)
    return Rows(flat, ids, where, tuple(hidden.shape[:-1]))


def _positions(hidden: Tensor, mask: Tensor | None, head: Tensor) -> Tensor:
    """Return where the flattened mask selects, (n,)."""
    check_states("hidden", hidden)
    if hidden.shape[-1] != head.shape[1]:
        raise ShapeError(
            f"hidden {tuple(hidden.shape)} and head {tuple(head.shape)} do not go together; "
            "expected hidden (…, D) for a head (V, D)"
        )
    shape = tuple(hidden.shape[:-1])
    if mask is None:
        return torch.arange(math.prod(shape), device=hidden.device)
    if not isinstance(mask, Tensor) or tuple(mask.shape) != shape:
        raise ShapeError(
            f"mask is {_said(mask)}; expected shape {shape}: one entry for each target"
        )
    if mask.dtype != torch.bool:
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise MaskError(
                f"a mask of dtype {mask.dtype} holds values other than 0 and 1; give booleans or "
                "0/1 (labels become a mask by labels != -100)"
            )
        mask = mask != 0
    return mask.reshape(-1).nonzero()[:, 0].to(hidden.device)


def check_states(name: str, hidden: Any) -> None:
    """Refuse what is no floating-point tensor (…, D)."""
    if not isinstance(hidden, Tensor) or hidden.ndim == 0 or not hidden.is_floating_point():
        raise ShapeError(f"{name} is {_said(hidden)}; expected a floating-point tensor (…, D)")


def _check(ids: Tensor, vocab: int, masked: bool) -> None:
    if not len(ids):
        return
    low, high = (int(one) for one in torch.aminmax(ids))
    if low < 0:
        where = "where the mask selects" if masked else "and no mask is given"
        raise MaskError(
            f"targets contain {low} {where}; expected token ids from 0 to {vocab - 1}. Leave "
            "positions that don't count out by mask= (labels become one by labels != -100)"
        )
    if high >= vocab:
        raise ShapeError(
            f"target {high} does not fit a head of {vocab} tokens; do the tokenizer and the model "
            "belong together?"
        )


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} of {value.dtype}"
    return repr(value)[:80]


def eager(function: F) -> F:
    """Run a function outside torch.compile, and refuse functorch's transforms by name.

    The gradient is formed while the value is computed, so there is nothing that a compiler or
    ``torch.func`` could differentiate.
    """

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
        if functorch.peek_interpreter_stack() is not None:
            raise RuntimeError(
                f"{function.__name__} forms its gradient in the forward pass and does not work "
                "under torch.func (grad, vmap, jvp, …); use .backward() or torch.autograd.grad, "
                "or the same formula on logits from tunemath.objective"
            )
        if "torch._dynamo" in sys.modules:
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    called._torchdynamo_disable = True  # pyright: ignore[reportAttributeAccessIssue]
    return called  # pyright: ignore[reportReturnType]
