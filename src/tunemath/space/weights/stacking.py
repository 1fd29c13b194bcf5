"""Several LoRA adapters of one base made into one, from their factors.

The sum of updates ``Σ c_i s_i B_i A_i`` is exactly one product,
``[c_1 s_1 B_1, c_2 s_2 B_2, …] [A_1; A_2; …]``, of at most the sum of the ranks. The mean
of the B_i times the mean of the A_i is another matrix, and no mean of the updates. Linear, task and
SLERP are such sums; SLERP's angle is that between two updates. TIES and DARE change single
elements, so a module's updates are formed, combined, and cut again.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tunemath.errors import ContractError, ModelError
from tunemath.space.factors import Factors, lora_factors
from tunemath.space.lowrank import LowRank
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.expressions import hold_expressions
from tunemath.space.weights.adapter import (
    WEIGHTS,
    AdapterWriter,
    Layout,
    balanced,
    inner,
    rank_patterns,
)
from tunemath.space.weights.cuts import Cut, Extraction
from tunemath.space.weights.mixing import Mix, drop_and_rescale, generator, slerp_weights, threshold
from tunemath.space.weights.ranks import RankChoice, truncated
from tunemath.space.weights.reader import Weights
from tunemath.space.weights.resize import cut_product, factors_dtype, is_factor

__all__ = ["combine_adapters"]

_SAME = ("target_modules", "layers_to_transform", "layers_pattern", "exclude_modules")


def combine_adapters(
    adapters: Sequence[Path],
    out: Path,
    mix: Mix,
    *,
    choice: RankChoice | None = None,
    dtype: str | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Extraction:
    """Write the combination of some LoRA adapters to the folder ``out``.

    ``choice`` cuts each module's sum; without it the sum is exact, its rank that of all adapters
    together, to which TIES and DARE are cut in any case. A module that an adapter does not have
    counts as an update of zeros. ``dtype`` is that of the factors, the first adapter's if None.
    Raises `ModelError` where an adapter has more than LoRA's factors, or two do not fit together.
    """
    if choice is not None and choice.by == "parameters":
        raise ContractError("--parameters is for resize, after combine; give --rank or --energy")
    files = [Weights(path / WEIGHTS) for path in adapters]
    for path, file in zip(adapters, files, strict=True):
        more = [key for key in file.tensors if not is_factor(key)]
        if more:
            raise ModelError(
                f"{path} has {more[0]} beside its factors ({len(more)} such), which adapters can't "
                "be combined with; merge each into the base and combine the models"
            )
    shapes = {key: header.shape for file in files for key, header in file.tensors.items()}
    total = sum(key.endswith(("A.weight", "embedding_A")) for key in shapes)
    writer = AdapterWriter(out, getattr(torch, dtype or factors_dtype(files[0])))
    result = Extraction()
    for done, (name, found) in enumerate(_by_module(adapters)):
        tick(done, total)
        if len({each.shape for _, each in found}) > 1:
            some = " and ".join(f"{list(e.shape)} in {adapters[i]}" for i, e in found[:2])
            raise ModelError(f"{name} is {some}; expected adapters of one base")
        a, b, fit, norm = _combined(name, found, mix, choice)
        kept = writer.add(Layout.of(name, shapes), a, b)
        errors = (fit.relative_error, fit.bound) if fit else (0.0, 0.0)
        shape = found[0][1].shape
        result.cuts.append(Cut(name, shape, len(a), norm, *errors, kept.share, kept.error))
        result.parameters += len(a) * sum(shape)
    ranks = {cut.name: cut.rank for cut in result.cuts}
    configs = [AdapterConfig.read(path) for path in adapters]
    for config in configs:
        hold_expressions(config, ranks)
    writer.write(_config(configs, ranks))
    return result


def _by_module(adapters: Sequence[Path]) -> Iterator[tuple[str, list[tuple[int, Factors]]]]:
    """Yield each module's factors in those adapters that have it, with the adapter's place."""

    def stream(place: int, path: Path) -> Iterator[tuple[str, int, Factors]]:
        return ((each.name, place, each) for each in lora_factors(path))

    streams = (stream(place, path) for place, path in enumerate(adapters))
    merged = heapq.merge(*streams, key=lambda each: each[:2])
    for name, group in itertools.groupby(merged, key=lambda each: each[0]):
        yield name, [(place, factors) for _, place, factors in group]


def _combined(
    name: str, found: list[tuple[int, Factors]], mix: Mix, choice: RankChoice | None
) -> tuple[Tensor, Tensor, LowRank | None, float]:
    """Return A and B of a module, what a cut lost, and the norm of the exact combination."""
    products = {place: _tensors(each) for place, each in found}
    if mix.sparse:
        rank = min(sum(each.rank for _, each in found), *found[0][1].shape)
        matrix = _elementwise(name, products, mix)
        norm = float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
        fit = truncated(matrix, choice or RankChoice("rank", rank))
    else:
        shares = _shares(products, mix)
        a = torch.cat([products[place][0] for place in products])
        b = torch.cat([shares[place] * products[place][1] for place in products], dim=1)
        norm = math.sqrt(max(0.0, inner((a, b), (a, b))))
        if choice is None:
            return a.float(), b.float(), None, norm
        fit = cut_product(a, b, choice)
    return *balanced(fit.left, fit.right, fit.singular_values, 1.0), fit, norm


def _tensors(factors: Factors) -> tuple[Tensor, Tensor]:
    """Return A, and B times the module's scale, float64."""
    a, b = (torch.tensor(each, dtype=torch.float64) for each in (factors.A, factors.B))
    return a, factors.scale * b


def _shares(products: dict[int, tuple[Tensor, Tensor]], mix: Mix) -> list[float]:
    """Return what each adapter's update counts with in a sum."""
    if mix.method == "task":
        return [mix.scale * weight for weight in mix.weights]
    if mix.method == "linear":
        return [weight / sum(mix.weights) for weight in mix.weights]
    one, two = products.get(0), products.get(1)
    norms = [math.sqrt(max(0.0, inner(each, each))) if each else 0.0 for each in (one, two)]
    product = inner(one, two) if one and two else 0.0
    return list(slerp_weights(norms[0], norms[1], product, mix.fraction))


def _elementwise(name: str, products: dict[int, tuple[Tensor, Tensor]], mix: Mix) -> Tensor:
    """Return a module's update by TIES or DARE, (d_out, d_in) float32, formed."""
    deltas = [torch.zeros(())] * len(mix.weights)
    for place, (a, b) in products.items():
        deltas[place] = (b @ a).float()
        if mix.method == "ties":
            size = deltas[place].abs()
            deltas[place] = deltas[place] * (size >= threshold(size, mix.density))
        else:
            random = generator(mix.seed, name, place)
            deltas[place] = drop_and_rescale(deltas[place], mix.density, random)
    shape = next(deltas[place].shape for place in products)
    return mix.summed([delta.expand(shape) for delta in deltas])


def _config(configs: Sequence[AdapterConfig], ranks: dict[str, int]) -> AdapterConfig:
    """Return the first adapter's configuration, with the combination's modules and ranks."""
    targets: dict[str, object] = {}
    first = [_plain(configs[0][key]) for key in _SAME]
    if any([_plain(config[key]) for key in _SAME] != first for config in configs[1:]):
        targets = {**dict.fromkeys(_SAME), "target_modules": _all_targets(configs, ranks)}
    patterns = rank_patterns(ranks, dict.fromkeys(ranks, 1.0))
    plain = {"use_rslora": False, "init_lora_weights": True}
    return configs[0].having(**targets, **patterns, **plain)


def _all_targets(configs: Sequence[AdapterConfig], ranks: dict[str, int]) -> list[str]:
    """Return the names of all modules: lists that mean whole models are joined, as names mean."""
    lists = [config["target_modules"] for config in configs]
    narrowed = any(config[key] for config in configs for key in _SAME[1:])
    if narrowed or not all(isinstance(each, list) for each in lists):
        return sorted(ranks)
    return sorted({name for each in lists for name in each})


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, list) else value
