"""What the fused objectives share: rows in, one value a row out, and an honest gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tunemath.objective.fused.head import Head
from tunemath.objective.fused.scan import Room

__all__ = [
    "ROWS",
    "Budget",
    "Gradients",
    "Needs",
    "Rule",
    "apply",
    "blocks",
    "cast",
    "exact",
    "parameters",
    "require_first_order",
]

# Tiles of about this many float32 logits stay in the cache between their products. Products of
# half-precision matrices take larger ones better, and so do other devices.
_IN_CACHE = 1 << 19
_IN_HALF = 1 << 23
_ELSEWHERE = 1 << 26


@dataclass(frozen=True)
class Needs:
    """Whose gradient is asked for."""

    hidden: bool = False
    weight: bool = False
    bias: bool = False
    A: bool = False
    B: bool = False

    @property
    def head(self) -> bool:
        """Whether any part of the head trains."""
        return self.weight or self.bias or self.A or self.B


class Gradients:
    """Gradients of hidden states and head, those that are asked for, filled block by block."""

    def __init__(self, form: Head, hidden: Tensor, needs: Needs) -> None:
        def zeros(one: Tensor | None, wanted: bool) -> Tensor | None:
            if one is None or not wanted:
                return None
            return torch.zeros_like(one, dtype=form.dtype)

        low = (None, None) if form.lora is None else (form.lora.A, form.lora.B)
        self.form = form
        self.hidden = torch.empty_like(hidden) if needs.hidden else None
        self.weight = torch.empty_like(form.weight, dtype=form.dtype) if needs.weight else None
        self.bias = zeros(form.bias, needs.bias)
        self.A, self.B = zeros(low[0], needs.A), zeros(low[1], needs.B)
        self._begun = False

    @property
    def room(self) -> Room | None:
        """The head's gradient as room for the tiles of up to D rows, until it is begun."""
        if self.weight is None or self._begun or not self.weight.is_contiguous():
            return None
        return Room(self.weight.view(-1), self.form.width)

    def every(self) -> tuple[Tensor | None, ...]:
        """Return them in the order of the arguments."""
        if self.weight is not None and not self._begun:
            self.weight.zero_()
        return self.hidden, self.weight, self.bias, self.A, self.B

    def scaled(self, by: Tensor) -> tuple[Tensor | None, ...]:
        """Return them times a scalar, in place."""
        if by.device.type == "cpu" and float(by) == 1.0:
            return self.every()
        return tuple(None if g is None else g.mul_(by.to(g.dtype)) for g in self.every())

    def add_tiles(self, hidden: Tensor, tiles: list[Tensor], factor: Tensor) -> None:
        """Add Σ_n factor_n tile_n ⊗ h_n to whatever of the head trains.

        ``tiles`` (N, tile) cover the vocabulary in order, and may lie in ``room``; the rows are
        scaled, not the tiles.
        """
        form = self.form
        exact_rows = hidden.to(form.dtype)
        rows = exact_rows * factor[:, None]
        low, back = self._low(exact_rows)
        lo, scratch = 0, None
        for tile in tiles:
            hi = lo + tile.shape[1]
            if self._holds(tile):
                # A product can't be written over its own factor.
                scratch = torch.empty_like(tile) if scratch is None else scratch
                tile = scratch.view(-1)[: tile.numel()].view_as(tile).copy_(tile)
            if self.weight is not None:
                form.add_outer(self.weight[lo:hi], tile, rows, fresh=not self._begun)
            if self.bias is not None:
                self.bias[lo:hi].addmv_(tile.t(), factor)
            if self.B is not None and low is not None:
                self.B[lo:hi].addmm_(tile.t(), low * factor[:, None])
            if back is not None and form.lora is not None:
                back.addmm_(tile, form.lora.B[lo:hi].to(form.dtype))
            lo = hi
        self._begun = True
        self._add_back(back, exact_rows, factor)

    def _holds(self, tile: Tensor) -> bool:
        """Return whether a tile lies where the head's gradient is to be."""
        if self.weight is None:
            return False
        return tile.untyped_storage().data_ptr() == self.weight.untyped_storage().data_ptr()

    def add_targets(self, hidden: Tensor, ids: Tensor, factor: Tensor) -> None:
        """Add factor_n 1[v = y_n] ⊗ h_n."""
        rows = hidden.to(self.form.dtype)
        low, back = self._low(rows)
        if self.weight is not None:
            self.weight.index_add_(0, ids, rows * factor[:, None])
        if self.bias is not None:
            self.bias.index_add_(0, ids, factor)
        if self.B is not None and low is not None:
            self.B.index_add_(0, ids, low * factor[:, None])
        if back is not None and self.form.lora is not None:
            back.add_(self.form.lora.B[ids].to(self.form.dtype))
        self._add_back(back, rows, factor)

    def add_even(self, hidden: Tensor, factor: Tensor) -> None:
        """Add factor_n ⊗ h_n for every token alike."""
        rows = hidden.to(self.form.dtype)
        low, back = self._low(rows)
        if self.weight is not None:
            self.weight.add_(factor @ rows)
        if self.bias is not None:
            self.bias.add_(factor.sum())
        if self.B is not None and low is not None:
            self.B.add_(factor @ low)
        if back is not None and self.form.lora is not None:
            back.add_(self.form.lora.B.sum(0, dtype=self.form.dtype))
        self._add_back(back, rows, factor)

    def _low(self, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return s·A h (N, r), which is in front of B, and zeros (N, r) for what returns to A."""
        if self.form.lora is None:
            return None, None
        low = rows @ self.form.lora.A.to(self.form.dtype).T * self.form.lora_scale
        return low, torch.zeros_like(low) if self.A is not None else None

    def _add_back(self, back: Tensor | None, rows: Tensor, factor: Tensor) -> None:
        if back is not None and self.A is not None:
            self.A.addmm_((back * factor[:, None]).t(), rows, alpha=self.form.lora_scale)


class Rule(Protocol):
    """One objective: its values row by row, with gradient as far as it is asked for."""

    form: Head

    @property
    def constants(self) -> tuple[Tensor | None, ...]:
        """Tensors that have to be unchanged when the backward pass computes again."""
        ...

    def values(self, hidden: Tensor, rows: slice, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Return a block's values (n,), and their gradient (n, D) by the hidden states."""
        ...

    def finish(self, hidden: Tensor, values: Tensor) -> None:
        """Put right, in place, what blocks without gradient left to a pass over the whole batch."""
        ...

    def gradients(self, hidden: Tensor, upstream: Tensor, needs: Needs) -> Gradients:
        """Return all gradients of Σ_n upstream_n value_n."""
        ...


def apply(rule: Rule, hidden: Tensor) -> Tensor:
    """Return the rule's values (N,) of rows ``hidden`` (N, D), differentiable once."""
    wanted = torch.is_grad_enabled() and hidden.requires_grad
    return _PerRow.apply(hidden, *parameters(rule.form), rule, wanted)


def parameters(form: Head) -> tuple[Tensor | None, ...]:
    """Return what of a head may train: W, b, A, B."""
    low = (None, None) if form.lora is None else (form.lora.A, form.lora.B)
    return (form.weight, form.bias, *low)


def blocks(n: int, most: int) -> Iterator[slice]:
    """Cut n rows into blocks of one size, at most ``most``."""
    count = max(1, -(-n // max(1, most)))
    size = max(1, -(-n // count))
    yield from (slice(start, min(start + size, n)) for start in range(0, n, size))


@dataclass(frozen=True)
class Budget:
    """How many logits may be held at once, by default or by the caller's ``chunk``."""

    chunk: int | None
    form: Head

    @property
    def tile(self) -> int:
        """Logits of a tile that is made and forgotten."""
        default = _IN_CACHE
        if self.form.native:
            default = _IN_HALF
        if self.form.weight.device.type != "cpu":
            default = _ELSEWHERE
        return default if self.chunk is None else min(default, self.chunk)

    def kept(self, copies: int = 1) -> int:
        """Rows that may keep all their logits, so many copies of them, until sums are known."""
        default = 1 << 26 if self.form.weight.device.type == "cpu" else 1 << 28
        return max(1, (self.chunk or default) // (copies * self.form.vocab))


def require_first_order() -> None:
    """Refuse to build a graph of the gradient: it is formed outside autograd."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the linear_ objectives are differentiable once: create_graph=True has no meaning for "
            "them. Use the same formula on logits, from tunemath.objective"
        )


def exact(device: torch.device) -> Any:
    """Keep autocast away: dtypes are chosen by the head."""
    return torch.autocast(device.type, enabled=False)


def cast(
    every: tuple[Tensor | None, ...], like: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Return gradients in the dtypes of what they belong to."""
    return tuple(
        None if g is None or p is None else g.to(p.dtype) for g, p in zip(every, like, strict=True)
    )


# Rows multiplied together: enough for the products' full speed, few enough for wide tiles.
ROWS = 1024


class _PerRow(torch.autograd.Function):
    """With a frozen head the gradient is formed with the value, and only scaled in backward.

    With a trained head it has to wait for the upstream gradient, and the logits are made again.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor | None,
        B: Tensor | None,
        rule: Rule,
        wanted: bool,
    ) -> Tensor:
        needs = Needs(*ctx.needs_input_grad[:5])
        ctx.rule, ctx.needs = rule, needs
        now = wanted and not needs.head
        values = torch.empty(len(hidden), dtype=rule.form.dtype, device=hidden.device)
        gradient = torch.empty_like(hidden) if now else None
        with exact(hidden.device):
            for rows in blocks(len(hidden), ROWS):
                values[rows], part = rule.values(hidden, rows, now)
                if gradient is not None and part is not None:
                    gradient[rows] = part
            if not now:
                rule.finish(hidden, values)
        if needs.head:
            ctx.save_for_backward(hidden, weight, bias, A, B, *rule.constants)
        else:
            ctx.save_for_backward(gradient)
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        require_first_order()
        if not ctx.needs.head:
            (gradient,) = ctx.saved_tensors
            return (gradient * upstream[:, None]).to(gradient.dtype), *(None,) * 6
        with exact(upstream.device):
            inputs = ctx.saved_tensors[:5]
            grads = ctx.rule.gradients(inputs[0], upstream, ctx.needs)
        return *cast(grads.every(), inputs), None, None
