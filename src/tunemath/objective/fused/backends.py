"""Other libraries' fused cross-entropy, for comparison: used only when named by ``backend=``."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tunemath.objective.fused.head import Head

__all__ = ["BACKENDS", "Backend", "borrowed"]

Backend = Literal["tunemath", "torch", "liger", "cce"]
BACKENDS: tuple[str, ...] = get_args(Backend)


def borrowed(
    backend: str,
    hidden: Tensor,
    head: Head,
    ids: Tensor,
    label_smoothing: float,
    ours: dict[str, Any],
) -> Tensor:
    """Return the losses (n,) of selected rows by another library, at its own defaults.

    ``ours`` are options that the others don't have here; those that are not None are refused.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    given = [name for name, value in ours.items() if value is not None]
    if given:
        raise ValueError(
            f"backend={backend!r} has no {' or '.join(given)} here; leave them out, or backend"
        )
    weight, bias = head.weight, head.bias
    if backend == "torch":
        return _torch(hidden, weight, bias, ids, label_smoothing)
    if backend == "cce":
        if bias is not None or label_smoothing:
            raise ValueError("backend='cce' has no bias or label_smoothing; leave them out")
        return _cce(hidden, weight, ids)
    return _liger(hidden, weight, bias, ids, label_smoothing)


def _torch(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, label_smoothing: float
) -> Tensor:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise ImportError(
            f"backend='torch' needs a torch that has linear_cross_entropy; this is "
            f"{torch.__version__}: pip install -U torch"
        )
    # Its chunked form has no label smoothing.
    options = None if label_smoothing else torch.nn.LinearCrossEntropyOptions()
    return torch.nn.functional.linear_cross_entropy(
        hidden, weight, ids, linear_bias=bias, reduction="none",
        label_smoothing=label_smoothing, options=options,
    )  # fmt: skip


def _cce(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    function = _found("cce", "cut-cross-entropy", "cut_cross_entropy").linear_cross_entropy
    kind = "cce" if hidden.is_cuda else "torch_compile"
    return function(hidden, weight, ids, reduction="none", impl=kind)


def _liger(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, label_smoothing: float
) -> Tensor:
    if not hidden.is_cuda:
        raise ValueError(
            "backend='liger' needs a GPU: its kernels are Triton; hidden is on the CPU"
        )
    module = _found("liger", "liger-kernel", "liger_kernel.transformers.functional")
    return module.liger_fused_linear_cross_entropy(
        hidden, weight, ids, bias=bias, label_smoothing=label_smoothing, reduction="none"
    )


def _found(backend: str, package: str, module: str) -> Any:
    """Import another library's module, or say which package it needs."""
    try:
        return import_module(module)
    except ImportError:
        raise ImportError(
            f"backend={backend!r} needs the package {package}: pip install {package}"
        ) from None
