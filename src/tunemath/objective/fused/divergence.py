"""KL between a tuned and a base model from their hidden states, without the logits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from tunemath.errors import ShapeError
from tunemath.objective.fused.function import ROWS, Budget, apply, blocks
from tunemath.objective.fused.head import LOG2_E, Head, Lora, check_head
from tunemath.objective.fused.kept import KeptRule
from tunemath.objective.fused.moments import Moments, QuickMoments, Statistics
from tunemath.objective.fused.pair import Pair
from tunemath.objective.fused.rows import check_states, eager, select, spread
from tunemath.objective.fused.scan import tile_width
from tunemath.objective.logits_divergence import kl_from_logits

__all__ = ["Direction", "linear_kl"]

Direction = Literal["tuned||base", "base||tuned"]

# Of the pilot that guesses how large most rows' KL will be.
_ROWS, _TOKENS = 128, 512


@eager
def linear_kl(
    hidden: Tensor,
    base_hidden: Tensor,
    head: Tensor,
    base_head: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    direction: Direction = "tuned||base",
    bias: Tensor | None = None,
    base_bias: Tensor | None = None,
    lora: Lora | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Return the KL divergence between tuned and base model at each selected position.

    Let z and z′ be the logits of tuned and base (as in `linear_cross_entropy`), p and q their
    softmaxes, d = z′ − z, u = d − E_p[d]. Then

    ``KL(p ‖ q) = log(1 + E_p[e^u − 1 − u])``,

    and with one head for both models ``d = scale·W (h′ − h)`` is itself one product, so that a
    movement of 1e-8 nats keeps its digits in float32, where the difference of two log-softmaxes
    has none. "base||tuned" is KL(q ‖ p), the same with the roles changed.

    ``hidden`` (…, D) of the tuned model; ``base_hidden`` (…, D′) of the base, a constant; ``head``
    (V, D); ``base_head`` (V, D′), the same head when None; ``mask`` (…) of booleans or 0/1, all
    when None; ``bias`` (V,), and ``base_bias`` the base's own, where ``base_head`` is given;
    ``lora`` is on the tuned head only; the other options are those of `linear_cross_entropy`.
    Returns (…) nats, at least 0, and 0 where the mask is off.

    Values take two products, values and gradient by ``hidden`` three. Two heads of one width take
    one more for the gradient, and for rows whose KL is small, below some 1e-3 nats times 1 − max p:
    there d comes from the difference of the heads. Rows so far apart that e^u overflows are
    computed from their logits, some at a time.

    Valid when both are shifted alike, and the vocabularies are the same. A head that trains is not
    the base's: give the base its own ``base_head``.

    >>> h, W = torch.tensor([[1e-6, 0.0]]), torch.eye(2)
    >>> f"{float(linear_kl(h, torch.zeros(1, 2), W)):.4e}"
    '1.2500e-13'

    Source: as `tunemath.objective.kl_from_logits`.
    """
    check_head(head, bias, lora, scale, soft_cap, chunk)
    if direction not in get_args(Direction):
        known = " or ".join(repr(one) for one in get_args(Direction))
        raise ValueError(f"direction is {direction!r}; expected {known}")
    own = _base_head(head, base_head, bias, base_bias)
    check_states("hidden", hidden)
    check_states("base_hidden", base_hidden)
    if base_hidden.shape[:-1] != hidden.shape[:-1] or base_hidden.shape[-1] != own[0].shape[1]:
        raise ShapeError(
            f"base_hidden has shape {tuple(base_hidden.shape)}; expected "
            f"{(*hidden.shape[:-1], own[0].shape[1])}: the base's states at the same positions"
        )
    rows = select(hidden, mask, head)
    base_rows = base_hidden.detach().reshape(-1, base_hidden.shape[-1])[rows.where]
    dtype = torch.promote_types(torch.promote_types(hidden.dtype, base_hidden.dtype), torch.float32)
    tuned = Head(head, bias, lora, scale, soft_cap, dtype)
    base = Head(own[0].detach(), own[1], None, scale, soft_cap, dtype)
    rule = _Divergence(tuned, chunk, base, base_rows, base_head is None, direction == "tuned||base")
    return spread(apply(rule, rows.hidden), rows)


def _base_head(
    head: Tensor, base_head: Tensor | None, bias: Tensor | None, base_bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the base's head and bias."""
    if base_head is not None:
        check_head(base_head, base_bias, None, 1.0, None, None)
        if len(base_head) != len(head):
            raise ShapeError(
                f"head {tuple(head.shape)} and base_head {tuple(base_head.shape)} differ in their "
                "vocabulary; KL compares distributions over the same tokens"
            )
        return base_head, base_bias
    if base_bias is not None:
        raise ValueError("base_bias has no meaning without base_head; both models share the bias")
    if torch.is_grad_enabled() and (
        head.requires_grad or (bias is not None and bias.requires_grad)
    ):
        raise ValueError(
            "the head trains, so it is not the base's; give base_head= (the head before training)"
        )
    return head, bias


@dataclass
class _Divergence(KeptRule):
    """KL(first ‖ second), of which the tuned model is one."""

    base: Head
    base_rows: Tensor
    shared: bool
    tuned_first: bool
    copies: ClassVar[int] = 2
    _quick: bool = False
    _near: list[Tensor] = field(default_factory=list)

    @property
    def constants(self) -> tuple[Tensor | None, ...]:
        return self.base_rows, self.base.weight, self.base.bias

    def stream(self, hidden: Tensor, rows: slice) -> Tensor:
        h, base = hidden[rows], self.base_rows[rows]
        if rows.start == 0:
            self._quick = self._two and not self._seem_near(hidden)
        statistics, _ = self._pass(h, base, keep=False, quick=self._quick)
        if self._quick:
            least = self._least(statistics.log2_z / LOG2_E)
            near = statistics.kl < least * statistics.others.clamp(min=1e-6)
            self._near.append(near.nonzero()[:, 0] + rows.start)
        return self._finished(statistics, h, base)

    def finish(self, hidden: Tensor, values: Tensor) -> None:
        """Compute the rows again whose d has to come from the difference of the heads."""
        near = torch.cat(self._near) if self._near else ()
        for part in blocks(len(near), ROWS):
            rows = near[part]
            h, base = hidden[rows], self.base_rows[rows]
            statistics, _ = self._pass(h, base, keep=False, quick=False)
            values[rows] = self._finished(statistics, h, base)

    def _finished(self, statistics: Statistics, h: Tensor, base: Tensor) -> Tensor:
        for far in self._far(statistics):
            first, second = self._order(*self._logits(h[far], base[far]))
            statistics.kl[far] = kl_from_logits(first, second).double()
        return statistics.kl.to(self.form.dtype)

    def keep(self, hidden: Tensor, rows: slice) -> tuple[Tensor, list[Tensor]]:
        h, base = hidden[rows], self.base_rows[rows]
        statistics, kept = self._pass(h, base, keep=True, quick=False)
        tiles = [self._derivative(statistics, *parts) for parts in kept]
        for far in self._far(statistics):
            logits, other = self._logits(h[far], base[far])
            with torch.enable_grad():
                value = kl_from_logits(*self._order(logits.requires_grad_(), other))
                (slope,) = torch.autograd.grad(value.sum(), logits)
            if self.form.soft_cap is not None:
                capped = logits.detach() / self.form.soft_cap
                slope = torch.where(capped == -math.inf, 0.0, slope * (1.0 - capped * capped))
            statistics.kl[far] = value.detach().double()
            for tile, part in zip(tiles, slope.split(tiles[0].shape[1], dim=1), strict=True):
                tile[far] = part
        return statistics.kl.to(self.form.dtype), tiles

    @property
    def _two(self) -> bool:
        """Whether there are two heads whose difference has a meaning."""
        return not self.shared and self.form.width == self.base.width

    def _seem_near(self, hidden: Tensor) -> bool:
        """Guess from some rows and tokens, as Var[d] / 2, whether most rows' KL is too small."""
        some = slice(None, None, -(-len(hidden) // _ROWS))
        tokens = min(self.form.vocab, _TOKENS)
        tuned, other = (
            (rows[some].to(self.form.dtype) @ form.weight[:tokens].to(self.form.dtype).T).mul_(
                self.form.scale
            )
            for form, rows in ((self.form, hidden), (self.base, self.base_rows))
        )
        spread = (other - tuned).var(1, correction=0)
        log_z = tuned.logsumexp(1) + math.log(self.form.vocab / tokens)
        return bool((spread / 2 / self._least(log_z)).median() < 2.0)

    def _least(self, log_z: Tensor) -> Tensor:
        """Return the least KL / (1 − max p) that keeps four digits (eight in float64).

        The rounding ε of d moves KL by Σ_v (q − p) ε_v, at most √(8 (1 − max p) KL) max |ε|, where
        ε is about the dtype's eps times |log Z|. That is √eps / 4 of KL at the limit.
        """
        return 128.0 * torch.finfo(self.form.dtype).eps * log_z.abs().clamp(min=8.0).square()

    def _order(self, tuned: Any, base: Any) -> tuple[Any, Any]:
        return (tuned, base) if self.tuned_first else (base, tuned)

    def _pass(
        self, h: Tensor, base: Tensor, *, keep: bool, quick: bool
    ) -> tuple[Statistics, list[tuple[Tensor, Tensor, Tensor | None]]]:
        """Return a block's statistics, and its tiles of (z·log2 e, d, slope) if they are kept."""
        n = len(h)
        width = tile_width(n, self.form, Budget(self.chunk, self.form).tile)
        quick = quick or (not self.shared and self.form.width != self.base.width)
        pair = Pair(*self._order((self.form, h), (self.base, base)), self.shared, quick)
        buffers = [h.new_empty(n * width, dtype=self.form.dtype) for _ in range(0 if keep else 2)]
        like = h.new_empty(0, dtype=self.form.dtype)
        moments = (QuickMoments if quick and not keep else Moments)(n, width, like)
        kept = []
        for parts in zip(*(form.tiles(width) for form in (pair.first, pair.second)), strict=True):
            shape = (n, parts[0].hi - parts[0].lo)
            if keep:
                z, d = (h.new_empty(shape, dtype=self.form.dtype) for _ in range(2))
                slope = None if self.form.soft_cap is None else torch.empty_like(z)
                kept.append((z, d, slope))
            else:
                z, d = (one[: math.prod(shape)].view(shape) for one in buffers)
                slope = None
            pair.tile(parts, z, d, slope, last=not self.tuned_first)
            moments.add(z, d)
        return moments.finish(), kept

    def _derivative(
        self, statistics: Statistics, z: Tensor, d: Tensor, slope: Tensor | None
    ) -> Tensor:
        """Return dKL/dx of the tuned logits, (n, tile), in place of z.

        −p u for KL(tuned ‖ base), and p − q = q (e^(d − E_q d − KL) − 1) for KL(base ‖ tuned).
        """
        weight = z.sub_(statistics.log2_z.to(z.dtype)[:, None]).exp2_()
        if self.tuned_first:
            d.sub_(statistics.centre.to(d.dtype)[:, None]).neg_()
        else:
            d.sub_((statistics.centre + statistics.kl).to(d.dtype)[:, None]).expm1_()
        weight.mul_(d)
        return weight if slope is None else weight.mul_(slope)

    def _far(self, statistics: Statistics) -> tuple[Tensor, ...]:
        """Return the rows that have to be computed from their logits, some at a time."""
        far = statistics.far.nonzero()[:, 0]
        held = Budget(self.chunk, self.form).kept(copies=8)
        return far.split(held) if len(far) else ()

    def _logits(self, h: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of both models, (n, V) nats."""
        return _all_logits(self.form, h), _all_logits(self.base, base)


def _all_logits(form: Head, rows: Tensor) -> Tensor:
    factor = form.prepare(rows)
    tiles = []
    for part in form.tiles(1 << 14):
        out = rows.new_empty(len(rows), part.hi - part.lo, dtype=form.dtype)
        tiles.append(form.cap(form.products(factor, part, out)))
    return torch.cat(tiles, dim=1).div_(LOG2_E)
