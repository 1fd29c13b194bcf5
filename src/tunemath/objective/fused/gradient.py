"""Cross-entropy as a rule: values and gradients from the sums of a scan.

With S = Σ_v e_v, log Z = log S + r, smoothing ε and z-loss weight ζ a row's loss is

    ℓ = (1 − ε)(log Z − z_y) + ε (log Z − Σ_v z_v / V) + ζ (log Z)²,
    dℓ/dz_v = (1 + 2ζ log Z) e_v / S − (1 − ε)·1[v = y] − ε / V.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tunemath.objective.fused.function import Budget, Gradients, Needs, blocks
from tunemath.objective.fused.head import Head
from tunemath.objective.fused.scan import Room, Sums, scan

__all__ = ["CrossEntropy"]


@dataclass
class CrossEntropy:
    """The loss of rows whose targets ``ids`` (N,) are sorted."""

    form: Head
    ids: Tensor
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    chunk: int | None = None

    @property
    def constants(self) -> tuple[Tensor | None, ...]:
        """The targets: they have to be unchanged when the backward pass computes again."""
        return (self.ids,)

    def values(self, hidden: Tensor, rows: slice, gradient: bool) -> tuple[Tensor, Tensor | None]:
        """Return a block's losses in nats, and their gradient by the hidden states."""
        sums = self._scan(hidden, rows, gradient, None)
        value = self._losses(sums).to(self.form.dtype)
        return value, self._by_hidden(sums) if gradient else None

    def finish(self, hidden: Tensor, values: Tensor) -> None:
        """Leave the values as they are: every block's are complete."""

    def gradients(self, hidden: Tensor, upstream: Tensor, needs: Needs) -> Gradients:
        """Return all gradients of Σ_n upstream_n ℓ_n."""
        return self.summed(hidden, upstream, needs)[1]

    def summed(self, hidden: Tensor, weights: Tensor, needs: Needs) -> tuple[Tensor, Gradients]:
        """Return Σ_n weights_n ℓ_n, 0-d float64, with all its gradients, by three products.

        Some rows at a time keep their e_v until their normaliser is known.
        """
        grads = Gradients(self.form, hidden, needs)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for rows, room in self._rooms(hidden, grads):
            w = weights[rows].double()
            sums = self._scan(hidden, rows, needs.hidden, room)
            total += (self._losses(sums) * w).sum()
            self._add_head(hidden[rows], self.ids[rows], w, sums, grads)
            if grads.hidden is not None:
                part = self._by_hidden(sums) * w.to(self.form.dtype)[:, None]
                grads.hidden[rows] = part.to(hidden.dtype)
            del sums  # before the next rows make theirs
        return total, grads

    def _rooms(self, hidden: Tensor, grads: Gradients) -> Iterator[tuple[slice, Room]]:
        """Cut the rows into blocks, each with room for its e_v.

        The first may wait where the head's gradient will be, which takes nothing and saves adding
        to it. Not with label smoothing under a soft-cap, where the slopes are kept as well.
        """
        n, vocab = len(hidden), self.form.vocab
        copies = 2 if self.label_smoothing and self.form.soft_cap is not None else 1
        most = Budget(self.chunk, self.form).kept(copies)
        cut, room = list(blocks(n, most)), grads.room
        first = min(n, self.form.width)
        rest = [slice(first + a.start, first + a.stop) for a in blocks(n - first, most)]
        if room is not None and copies == 1 and len(rest) < len(cut):
            yield slice(0, first), room
            cut = rest
        size = max((rows.stop - rows.start for rows in cut), default=0)
        flat = hidden.new_empty(size * vocab, dtype=self.form.dtype)
        yield from ((rows, Room(flat, rows.stop - rows.start)) for rows in cut)

    def _scan(self, hidden: Tensor, rows: slice, gradient: bool, keep: Room | None) -> Sums:
        return scan(
            self.form, hidden[rows], self.ids[rows], gradient=gradient, keep=keep,
            smoothing=self.label_smoothing > 0, chunk=Budget(self.chunk, self.form).tile,
        )  # fmt: skip

    def _losses(self, sums: Sums) -> Tensor:
        """Return each row's loss, (N,) nats in float64."""
        log_s = torch.log1p(sums.others + (sums.own - 1.0))
        log_z = log_s + sums.reference
        loss = log_s - (sums.target - sums.reference)
        if sums.total is not None:
            even = log_z - sums.total / self.form.vocab
            loss = (1.0 - self.label_smoothing) * loss + self.label_smoothing * even
        return loss + self.z_loss * log_z**2 if self.z_loss else loss

    def _factors(self, sums: Sums) -> tuple[Tensor, Tensor]:
        """Return what multiplies e_v (v ≠ y) in dℓ/dz_v, and dℓ/dz_y + ε/V; both (N,) float64.

        The second is (1 + 2ζ log Z) p_y − (1 − ε), written so that nothing cancels as p_y → 1.
        """
        s = sums.others + sums.own
        z = 2.0 * self.z_loss * (torch.log(s) + sums.reference) if self.z_loss else 0.0
        keep = 1.0 - self.label_smoothing
        own = sums.own * (z + self.label_smoothing) - keep * sums.others
        return self.form.scale * (1.0 + z) / s, self.form.scale * own / s

    @property
    def _even(self) -> float:
        """Label smoothing's part of dℓ/dx_v, the same for every token but for its slope."""
        return -self.label_smoothing * self.form.scale / self.form.vocab

    def _by_hidden(self, sums: Sums) -> Tensor:
        """Return dℓ/dh, (N, D), from a scan with ``gradient``, whose products it uses up."""
        assert sums.rows is not None
        others, own = (f.to(self.form.dtype) for f in self._factors(sums))
        own = own if sums.slope is None else own * sums.slope
        result = sums.rows.mul_(others[:, None]).addcmul_(own[:, None], sums.chosen)
        return result if sums.even is None else result.add_(sums.even, alpha=self._even)

    def _add_head(
        self, hidden: Tensor, ids: Tensor, weights: Tensor, sums: Sums, grads: Gradients
    ) -> None:
        """Add a block's part to the gradients of whatever of the head trains."""
        assert sums.tiles is not None
        others, own = ((weights * f).to(self.form.dtype) for f in self._factors(sums))
        grads.add_tiles(hidden, sums.tiles, others)
        grads.add_targets(hidden, ids, own if sums.slope is None else own * sums.slope)
        even = (weights * self._even).to(self.form.dtype)
        if sums.slopes is not None:
            grads.add_tiles(hidden, sums.slopes, even)
        elif self.label_smoothing:
            grads.add_even(hidden, even)
