"""A LoRA adapter of another rank: its update decomposed from its factors, never formed.

Let ΔW = s·B A with B = Q_B R_B and Aᵀ = Q_A R_Aᵀ, columns orthonormal in Q_B and Q_A. The singular
value decomposition of the r × r core, ``R_B R_A = U Σ Vᵀ``, is that of B A between Q_B U and Q_A V,
exactly; cut after r' values it is the best of that rank. Each module keeps its s = α/r, or α/√r
with rsLoRA, by an α that goes with its new rank.

Source: Eckart and Young 1936; resizing as in kohya-ss/sd-scripts, resize_lora.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tunemath.errors import ModelError
from tunemath.space.factors import Factors, lora_factors
from tunemath.space.lowrank import LowRank
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.expressions import hold_expressions
from tunemath.space.weights.adapter import (
    PREFIX,
    WEIGHTS,
    AdapterWriter,
    Layout,
    balanced,
    rank_patterns,
)
from tunemath.space.weights.cuts import Cut, Extraction
from tunemath.space.weights.ranks import RankChoice, chosen_rank, share_ranks
from tunemath.space.weights.reader import TORCH_DTYPES, Weights
from tunemath.space.weights.writer import Planned

__all__ = ["cut_product", "factors_dtype", "is_factor", "resize"]

_Triples = tuple[Tensor, Tensor, Tensor]
"""U (d_out, k), Σ (k,) and Vᵀ (k, d_in), float64."""


def resize(
    adapter: Path,
    out: Path,
    choice: RankChoice,
    *,
    dtype: str | None = None,
    tick: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Extraction:
    """Write a LoRA adapter cut to the ranks of ``choice`` to the folder ``out``.

    ``dtype`` is that of the factors, as they are stored if None. What else the adapter has, such
    as saved modules, biases and tokens, stays as it is. Returns the error of each module against
    the adapter that was given. Raises `ModelError` for an adapter whose update is no product of
    LoRA's two factors.
    """
    config = AdapterConfig.read(adapter)
    weights = Weights(adapter / WEIGHTS)
    shapes = {name: header.shape for name, header in weights.tensors.items()}
    if config["lora_bias"]:
        raise ModelError(f"{adapter} has lora_bias, a bias beside each B, which no rank cuts")
    values: dict[str, Tensor] = {}
    costs = {}
    for done, each in enumerate(lora_factors(adapter)):
        tick("singular values", done, len(shapes) // 2)
        costs[each.name] = sum(each.shape)
        values[each.name] = abs(each.scale) * _triples(each)[1]
    hold_expressions(config, values)
    if choice.by == "parameters":
        ranks = share_ranks({n: s.tolist() for n, s in values.items()}, costs, int(choice.value))
    else:
        ranks = {name: chosen_rank(s, choice) for name, s in values.items()}
    if not any(ranks.values()):
        raise ModelError(f"--{choice.by} {choice.value:g} leaves {adapter} no rank; give more")
    result = Extraction()
    scales = {}
    writer = AdapterWriter(out, getattr(torch, dtype or factors_dtype(weights)))
    for done, each in enumerate(lora_factors(adapter)):
        tick("factors", done, len(costs))
        # PEFT has no module without rank: one whose share is none keeps a rank of zeros.
        fit = _cut(_triples(each), ranks[each.name])
        scales[each.name], ranks[each.name] = each.scale, max(1, ranks[each.name])
        a, b = balanced(fit.left, fit.right, fit.singular_values, 1.0)
        kept = writer.add(Layout.of(each.name, shapes), a, b)
        norm = float(torch.linalg.vector_norm(values[each.name]))
        errors = fit.relative_error, fit.bound, kept.share, kept.error
        result.cuts.append(Cut(each.name, each.shape, len(a), norm, *errors))
        result.parameters += len(a) * costs[each.name]
    for key, header in weights.tensors.items():
        if not is_factor(key):
            planned = Planned(TORCH_DTYPES[header.dtype], header.shape)
            writer.whole(key, planned, lambda key=key: weights.read(key))
    patterns = rank_patterns(ranks, scales, bool(config["use_rslora"]))
    writer.write(config.having(**patterns, init_lora_weights=True))
    return result


def cut_product(a: Tensor, b: Tensor, choice: RankChoice) -> LowRank:
    """Return the best approximation of B A at the rank that is chosen for it, from the factors.

    ``a`` (r, d_in) and ``b`` (d_out, r), float64; a choice other than a shared budget.
    """
    svd = _decomposed(a, b)
    return _cut(svd, chosen_rank(svd[1], choice))


def _decomposed(a: Tensor, b: Tensor) -> _Triples:
    """Return the singular value decomposition of B A from A (r, d_in) and B (d_out, r), float64."""
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return q_b @ u, s, vh @ q_a.T


def _triples(factors: Factors) -> _Triples:
    """Return that of a module's B A, without its scale."""
    return _decomposed(
        *(torch.tensor(each, dtype=torch.float64) for each in (factors.A, factors.B))
    )


def is_factor(key: str) -> bool:
    """Return whether a tensor of an adapter's file is one of LoRA's factors."""
    name = key.removeprefix(PREFIX).removesuffix(".weight")
    return name.endswith((".lora_A", ".lora_B", ".lora_embedding_A", ".lora_embedding_B"))


def _cut(svd: _Triples, rank: int) -> LowRank:
    """Return the first ``rank`` directions, or one of zeros where there is none to keep."""
    u, s, vh = svd
    total, rest = float(s.square().sum()), float(s[rank:].square().sum())
    if not rank:
        s = torch.zeros_like(s)
    error = math.sqrt(rest / total) if total else 0.0
    keep = max(1, rank)
    # In float64 the decomposition of a small core is exact to about 1e-14.
    bound = error + 1e-12
    return LowRank(u[:, :keep] * s[:keep], vh[:keep], s[:keep], error, bound)


def factors_dtype(weights: Weights) -> str:
    """Return the dtype of the factors; of several, the widest."""
    dtypes = {TORCH_DTYPES[h.dtype] for key, h in weights.tensors.items() if is_factor(key)}
    return str(max(dtypes, key=lambda dtype: dtype.itemsize)).removeprefix("torch.")
