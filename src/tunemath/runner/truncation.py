"""A model whose update is cut down to a rank: in every matrix, or in the blocks of one type.

Let W be a matrix of the base, W + ΔW the tuned model's, and U Σ Vᵀ the singular value
decomposition of ΔW. Cut at rank r it is ``W + U_r Σ_r V_rᵀ``, written into the live weights in
float32; the base comes back from a copy, bit by bit. LoRA's ΔW = s·B A is decomposed by its
factors, every other update by the difference of the weights, matrix by matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.runner.heads import States
from tunemath.space import Factors, low_rank
from tunemath.space.coverage import block_type

__all__ = ["BLOCKS", "Cut", "Part", "Truncation", "cut_differences", "cut_factors", "own_weight"]

_GROUPS = {
    "attention": ("attention", "cross-attention", "linear attention"),
    "feed-forward": ("feed-forward", "experts", "shared expert"),
    "embeddings and head": ("embedding", "head"),
}
BLOCKS = (*_GROUPS, "other")
"""The types of blocks by which an update is cut; state spaces, routers and the rest are other."""

Cut = Mapping[str, int]
"""The rank of each type of block that is cut; the others stay whole."""


@dataclass(frozen=True)
class Part:
    """A matrix that changed."""

    name: str
    block: str
    weight: nn.Parameter
    """The live weight, (d_out, d_in); of an embedding and a Conv1D (d_in, d_out)."""
    base: Tensor
    """What it was."""
    tuned: Tensor | None
    """What it became; None where the factors are all of it."""
    left: Tensor
    """(m, k): left singular vectors of ΔW (m, n), each times its singular value."""
    right: Tensor
    """(k, n): the right ones."""
    kept: np.ndarray
    """(k + 1,): ‖ΔW_r‖_F² for r from 0 to k."""
    total: float
    """‖ΔW‖_F²."""
    rank: int
    """The most singular values of ΔW that can differ from zero."""

    def at(self, rank: int | None) -> Tensor:
        """Return the weight with its update cut at a rank; whole where None or no less."""
        if rank is None or rank >= self.rank:
            if self.tuned is not None:
                return self.tuned
            rank = self.rank
        return self.base + self.left[:, :rank] @ self.right[:rank]

    def energy(self, rank: int) -> float:
        """Return ‖ΔW_r‖_F²."""
        return self.total if rank >= self.rank else float(self.kept[min(rank, len(self.kept) - 1)])


class Truncation:
    """A base model in memory and an update of it; outside `at` the model is the base."""

    def __init__(
        self,
        model: Any,
        parts: Sequence[Part],
        whole: Mapping[str, tuple[nn.Parameter, Tensor, Tensor]],
        source: str,
    ) -> None:
        self.model = model
        self.parts = tuple(parts)
        self.source = source
        self._whole = dict(whole)

    @property
    def rank(self) -> int:
        """The rank at which the update is whole."""
        return max(part.rank for part in self.parts)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The types of blocks in which a matrix changed."""
        return tuple(block for block in BLOCKS if any(p.block == block for p in self.parts))

    @property
    def uncut(self) -> tuple[str, ...]:
        """The names of changed weights that are no matrices; no cut touches them."""
        return tuple(self._whole)

    def energy(self, cut: Cut, blocks: Sequence[str] = BLOCKS) -> float:
        """Return the share of ‖ΔW‖_F² over all matrices of ``blocks`` that a cut holds."""
        parts = [part for part in self.parts if part.block in blocks]
        held = sum(part.energy(cut.get(part.block, part.rank)) for part in parts)
        return held / sum(part.total for part in parts)

    def anchored(self, states: States) -> States:
        """Return states with a head that no cut writes into, to be compared with those of cuts."""
        if states.head is None:
            return states
        live = self.model.get_output_embeddings()
        changing = {id(part.weight) for part in self.parts}
        changing |= {id(weight) for weight, _, _ in self._whole.values()}

        def apart(own: Tensor | None, shared: Tensor | None) -> Tensor | None:
            if own is None or shared is None or id(shared) in changing:
                return None if own is None else own.detach().clone()
            return shared if torch.equal(own, shared) else own

        head = states.head
        weight, bias = apart(head.weight, live.weight), apart(head.bias, live.bias)
        return replace(states, head=replace(head, weight=weight, bias=bias))

    @contextmanager
    def at(self, cut: Cut) -> Iterator[Any]:
        """Let the model be the tuned one with its update cut; afterwards it is the base again."""
        try:
            with torch.no_grad():
                for part in self.parts:
                    part.weight.copy_(part.at(cut.get(part.block)))
                for weight, _, tuned in self._whole.values():
                    weight.copy_(tuned)
            yield self.model
        finally:
            with torch.no_grad():
                for part in self.parts:
                    part.weight.copy_(part.base)
                for weight, base, _ in self._whole.values():
                    weight.copy_(base)


def cut_factors(model: Any, factors: Sequence[Factors]) -> Truncation:
    """Return an update of LoRA's factors, ready to be cut. No ΔW is formed to decompose it.

    ``model`` is the base, in memory; ``factors`` are those of its modules.
    """
    for each in factors:
        own_weight(model, f"{each.name}.weight")
    blocks = _blocks(model)
    parts = []
    for each in factors:
        module = model.get_submodule(each.name)
        columns = torch.from_numpy(each.B.astype(np.float64)) * each.scale
        rows = torch.from_numpy(each.A.astype(np.float64))
        if isinstance(module, nn.Embedding | Conv1D):  # their weight is (d_in, d_out)
            columns, rows = rows.T, columns.T
        left, values, right = _product_svd(columns, rows)
        if values[0] > 0:
            name = f"{each.name}.weight"
            weight = cast(nn.Parameter, module.weight)
            parts.append(_part(name, weight, blocks, left, values, right))
    if not parts:
        raise ModelError("B A is zero in every module: the adapter changes nothing; train it first")
    return Truncation(model, parts, {}, "LoRA's factors")


def cut_differences(
    model: Any, tuned: Any, ranks: int, tick: Any = lambda done, total: None
) -> Truncation:
    """Return the update that makes ``tuned`` of ``model``, ready to be cut at up to ``ranks``.

    Both are in memory, of one architecture, in float32. Of each matrix that differs the first
    ``ranks`` singular triples are computed by `tunemath.low_rank`; what differs and is no matrix
    stays whole. Raises `ModelError` where the two don't go together, or no matrix differs.
    """
    after = dict(tuned.named_parameters(remove_duplicate=False))
    _untie(model, after)
    before = dict(model.named_parameters())
    _same_shapes(
        before, after, {name for name, _ in model.named_parameters(remove_duplicate=False)}
    )
    changed = [name for name, weight in before.items() if not torch.equal(weight, after[name])]
    matrices = [name for name in changed if before[name].dim() == 2]
    if not matrices:
        raise ModelError("no weight of two dimensions changed, so there is no rank to cut")
    blocks, parts = _blocks(model), []
    for done, name in enumerate(matrices):
        tick(done, len(matrices))
        weight, new = before[name], after[name].detach()
        delta = new - weight.detach()
        fit = low_rank(delta, min(ranks, *delta.shape))
        total = float(delta.double().square().sum())
        parts.append(
            _part(name, weight, blocks, fit.left, fit.singular_values, fit.right, new, total)
        )
    tick(len(matrices), len(matrices))
    whole = {
        name: (before[name], before[name].detach().clone(), after[name].detach())
        for name in changed
        if name not in set(matrices)
    }
    return Truncation(model, parts, whole, "the differences of the weights")


def own_weight(model: Any, name: str) -> nn.Parameter:
    """Return a module's parameter, parted from the others that it is tied to."""
    parent, _, key = name.rpartition(".")
    module = model.get_submodule(parent)
    parameter = getattr(module, key)
    everything = model.named_parameters(remove_duplicate=False)
    if sum(each is parameter for _, each in everything) > 1:
        parameter = nn.Parameter(parameter.detach().clone(), requires_grad=False)
        setattr(module, key, parameter)
    return parameter


def _part(
    name: str,
    weight: nn.Parameter,
    blocks: Mapping[str, str],
    left: Tensor,
    values: Tensor,
    right: Tensor,
    tuned: Tensor | None = None,
    total: float | None = None,
) -> Part:
    squares = values.double().square().cumsum(0).cpu().numpy()
    kept = np.concatenate(([0.0], squares))
    place = {"device": weight.device, "dtype": weight.dtype}
    return Part(
        name=name,
        block=blocks.get(name.rpartition(".")[0], "other"),
        weight=weight,
        base=weight.detach().clone(),
        tuned=tuned,
        left=left.to(**place),
        right=right.to(**place),
        kept=kept,
        total=float(kept[-1]) if total is None else total,
        rank=len(values) if tuned is None else min(weight.shape),
    )


def _product_svd(columns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return left, σ and right of ``columns @ rows``, (m, r) by (r, n), by QR of both."""
    q, upper = torch.linalg.qr(columns)
    p, lower = torch.linalg.qr(rows.T)
    u, values, vh = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return (q @ u) * values, values, vh @ p.T


def _blocks(model: Any) -> dict[str, str]:
    """Return the type of the block that each module belongs to, one of `BLOCKS`."""
    groups = {kind: group for group, kinds in _GROUPS.items() for kind in kinds}
    blueprint = blueprint_of(model)
    kinds = {module.name: block_type(module, blueprint.head) for module in blueprint.modules}
    return {name: groups.get(kind, "other") for name, kind in kinds.items()}


def _untie(model: Any, after: Mapping[str, nn.Parameter]) -> None:
    """Give weights that are one in the base, and are not in the tuned model, tensors apart."""
    names: dict[int, str] = {}
    for name, weight in list(model.named_parameters(remove_duplicate=False)):
        first = names.setdefault(id(weight), name)
        if first == name or not {first, name} <= after.keys():
            continue
        if not torch.equal(after[first], after[name]):
            own_weight(model, name)


def _same_shapes(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], known: Set[str]
) -> None:
    for name, weight in before.items():
        if name not in after or after[name].shape != weight.shape:
            there = f"shape {list(after[name].shape)}" if name in after else "no such weight"
            raise ModelError(
                f"{name} has shape {list(weight.shape)} in the base and {there} in the tuned "
                "model; give two models of one architecture"
            )
    extra = sorted(after.keys() - known)
    if extra:
        raise ModelError(
            f"the tuned model has {extra[0]}, which the base has not; give two models of one "
            "architecture"
        )
