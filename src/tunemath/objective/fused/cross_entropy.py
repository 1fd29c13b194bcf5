"""Cross-entropy and log-probabilities from hidden states, without the logits."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from tunemath.objective.fused.backends import Backend, borrowed
from tunemath.objective.fused.function import (
    Needs,
    apply,
    cast,
    exact,
    parameters,
    require_first_order,
)
from tunemath.objective.fused.gradient import CrossEntropy
from tunemath.objective.fused.head import Head, Lora, check_head
from tunemath.objective.fused.rows import Rows, eager, select_targets, spread

__all__ = ["linear_cross_entropy", "linear_token_log_probs"]


@eager
def linear_cross_entropy(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    lora: Lora | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk: int | None = None,
    backend: Backend = "tunemath",
) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of the selected targets, and the weight to divide it by.

    Let h be a hidden state, W the head, y the target, m ∈ {0, 1} the mask and w the weights; with
    ``x = scale·(W h + s·B A h + b)`` and logits ``z = cap·tanh(x / cap)`` (z = x without a cap)

    ``(Σ m·w·ℓ, Σ m·w)`` with ``nll = log Z − z_y`` and
    ``ℓ = (1−ε)·nll + ε·mean_v(−log p_v) + ζ·(log Z)²``.

    ``hidden`` (…, D); ``head`` (V, D); ``targets`` (…) of token ids, any value where the mask is
    off or the weight 0; ``mask`` (…) of booleans or 0/1, all when None; ``weights`` (…) of 0 or
    more, without a unit, constants; ``bias`` (V,); ``lora`` factors of the head;
    ``label_smoothing`` is ε in [0, 1), ``z_loss`` is ζ ≥ 0; ``chunk`` is the most logits that a
    tile holds (never less than 256 tokens of 1,024 rows, nor more than the default: 2^19 on a CPU,
    2^23 in half precision, 2^26 elsewhere), and that a trained head keeps in whole rows (one at
    least; default: 2^26, and 2^28) beside up to D rows that wait in its gradient's own place.
    ``backend`` "torch", "liger" or "cce" computes by that library instead. Returns the sum (nats)
    and the weight (a count, or Σ w), both 0-d: ``pooled_mean([linear_cross_entropy(…)])`` is the
    mean over the batch, and pairs of micro-batches add.

    Only selected rows are multiplied: by two products where the head is frozen, three where it
    trains, one without gradient. Extra memory is some rows of D and ``chunk`` logits.

    Valid when ``hidden`` is the input of the output layer, shifted: ``hidden[:, :-1]`` with
    ``ids[:, 1:]``. Gradients come from ``backward()``; a second backward through a trained head
    computes again; double backward, forward-mode and ``torch.func`` are refused, and
    ``torch.compile`` runs it as it is.

    >>> h, W = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.eye(2)
    >>> total, weight = linear_cross_entropy(h, W, torch.tensor([1, 1]), torch.tensor([1, 0]))
    >>> round(float(total), 4), int(weight)
    (0.3133, 1)

    Source: the sums are those of `tunemath.objective.cross_entropy`; streaming over the
    vocabulary as in attention with keys and values W (Dao et al. 2022, arXiv 2205.14135).
    """
    check_head(head, bias, lora, scale, soft_cap, chunk)
    if not (isinstance(label_smoothing, Real) and 0 <= label_smoothing < 1):
        raise ValueError(f"label_smoothing is {label_smoothing!r}; expected 0 or more, below 1")
    if not (isinstance(z_loss, Real) and 0 <= z_loss < math.inf):
        raise ValueError(f"z_loss is {z_loss!r}; expected 0 or more, such as 1e-4")
    rows = select_targets(hidden, targets, mask, head, weights)
    form = Head(head, bias, lora, scale, soft_cap, hidden.dtype)
    w, weight = _weights(weights, rows, form.dtype)
    if backend != "tunemath":
        ours = {"lora": lora, "soft_cap": soft_cap, "z_loss": z_loss or None, "chunk": chunk}
        ours["scale"] = None if scale == 1.0 else scale
        loss = borrowed(backend, rows.hidden, form, rows.ids, label_smoothing, ours)
        return (loss * w).sum(), weight
    rule = CrossEntropy(form, rows.ids, label_smoothing, z_loss, chunk)
    parts = parameters(form)
    if torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in parts):
        return _Summed.apply(rows.hidden, *parts, w, rule), weight
    return (apply(rule, rows.hidden) * w).sum(), weight


@eager
def linear_token_log_probs(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    lora: Lora | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Return the log-probability of each selected target.

    Let h be a hidden state, W the head, y the target, and the logits z those of
    `linear_cross_entropy`: ``z_y − log Σ_v exp z_v``.

    ``hidden`` (…, D); ``head`` (V, D); ``targets`` (…) of token ids, any value where the mask is
    off; ``mask`` (…) of booleans or 0/1, all when None; the options are those of
    `linear_cross_entropy`. Returns (…) nats, at most 0, and 0 where the mask is off, so that a
    row's sum is its answer's log-probability.

    With a frozen head, values and gradient of all tokens take two products: the gradient of a
    token is formed with its value, and the backward pass scales it. With a trained head they take
    four (the logits are made again once the upstream gradient is known).

    Valid as `linear_cross_entropy`; a row whose mask selects nothing gives 0, which
    `sequence_log_prob` would refuse.

    >>> h, W = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.eye(2)
    >>> [round(float(one), 4) for one in linear_token_log_probs(h, W, torch.tensor([1, 1]))]
    [-0.3133, -2.1269]

    Source: as `tunemath.objective.token_log_probs`.
    """
    check_head(head, bias, lora, scale, soft_cap, chunk)
    rows = select_targets(hidden, targets, mask, head)
    form = Head(head, bias, lora, scale, soft_cap, hidden.dtype)
    return spread(-apply(CrossEntropy(form, rows.ids, chunk=chunk), rows.hidden), rows)


def _weights(weights: Tensor | None, rows: Rows, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return each row's weight (n,) and their sum."""
    device = rows.hidden.device
    if weights is None:
        ones = torch.ones(len(rows.ids), dtype=dtype, device=device)
        return ones, torch.tensor(len(rows.ids), device=device)
    if weights.requires_grad:
        raise ValueError("weights require a gradient, but are constants here; detach() them")
    w = weights.reshape(-1)[rows.where].double()
    if not bool(((w >= 0) & (w < math.inf)).all()):
        raise ValueError("weights hold negative numbers, infinity or NaN; expected 0 or more")
    return w.to(dtype), w.sum().to(dtype)


class _Summed(torch.autograd.Function):
    """The weighted sum of the losses where the head trains: three products, all in forward."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor | None,
        B: Tensor | None,
        weights: Tensor,
        rule: CrossEntropy,
    ) -> Tensor:
        ctx.rule, ctx.needs = rule, Needs(*ctx.needs_input_grad[:5])
        ctx.save_for_backward(hidden, weight, bias, A, B, weights)
        with exact(hidden.device):
            total, ctx.grads = rule.summed(hidden, weights, ctx.needs)
        return total.to(rule.form.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        require_first_order()
        *inputs, weights = ctx.saved_tensors
        # They are given away, so that autograd may keep them without a copy.
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            with exact(upstream.device):
                grads = ctx.rule.gradients(inputs[0], weights, ctx.needs)
        return *cast(grads.scaled(upstream), tuple(inputs)), None, None
