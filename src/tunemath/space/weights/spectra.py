"""The spectrum of one changed weight: singular values, ranks, and where they point.

Up to a size all singular values are computed in float64; a larger matrix has its first ones from
`low_rank`, with the sum of squares of all, so that every error has a certified bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import degrees, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunemath.space.angles import principal_angles
from tunemath.space.blueprint import Module
from tunemath.space.coverage import block_type
from tunemath.space.factors import nonzero
from tunemath.space.intruders import intruder_dimensions
from tunemath.space.layers import place_of
from tunemath.space.lowrank import LowRank, low_rank
from tunemath.space.spectrum import effective_rank_bounds
from tunemath.space.weights.differences import Difference, square_norm

__all__ = ["Directions", "SpectrumSettings", "weight_spectra"]

_ROWS = 4096
_PASSES = 8
_HEADS = ("lm_head", "embed_out", "output")
_EMBEDDINGS = ("embed", "wte", "wpe", "word_embeddings")

Directions = Callable[[str, int], tuple[Tensor, Tensor] | None]
"""Another update's first left and right singular vectors of a module; None where it has none."""


@dataclass(frozen=True)
class SpectrumSettings:
    """How much is computed of each changed weight."""

    top: int = 64
    """Singular values that are kept."""
    exact: int = 1024
    """The smaller side up to which a matrix is decomposed in full."""
    directions: int = 8
    """Of the update, the base and another update, whose angles are taken; 0 for none."""
    intruders: int = 10
    """First directions of the tuned weight that are looked for in the base; 0 for none."""
    epsilon: float = 0.5
    """The cosine under which a direction is an intruder."""


@dataclass(frozen=True)
class _Values:
    """What is known of a matrix's singular values."""

    first: np.ndarray
    """(k,) float64, descending."""
    square_sum: float
    """Σ σ² of all."""
    count: int
    """How many there are that can differ from zero."""
    exact: bool
    rest: float
    """The relative error of the first k directions together."""
    bound: float
    """What that error certainly does not exceed."""


def weight_spectra(
    differences: Iterable[Difference], settings: SpectrumSettings, other: Directions | None = None
) -> Iterator[dict[str, Any]]:
    """Yield a row of ``spectrum.json`` for each changed weight."""
    for difference in differences:
        yield _row(difference, settings, other)


def _row(
    difference: Difference, settings: SpectrumSettings, other: Directions | None
) -> dict[str, Any]:
    fit, values = _decomposed(difference, settings)
    norm = sqrt(values.square_sum)
    weight = None if difference.before is None else sqrt(square_norm(difference.before))
    name, place = difference.name.partition("[")[0], place_of(difference.name)
    row: dict[str, Any] = {
        "name": difference.name,
        "target": name.rpartition(".")[2],
        "block": _block(name),
        "layer": place[1] if place else None,
        "shape": list(difference.shape),
        "rank": values.count,
        "exact": values.exact,
        **_ranks(values, settings.top),
        "frobenius": norm,
        "weight_norm": weight,
        "relative_norm": norm / weight if weight else None,
    }
    return row | _places(difference, fit, settings, other) if norm else row


def _block(name: str) -> str:
    """Return the type of the block that a module belongs to.

    >>> _block("model.layers.3.mlp.up_proj"), _block("model.embed_tokens"), _block("lm_head")
    ('feed-forward', 'embedding', 'head')
    """
    last = name.rpartition(".")[2]
    kind = "embedding" if any(word in last for word in _EMBEDDINGS) else "linear"
    head = name if last in _HEADS and place_of(name) is None else ""
    return block_type(Module(name, kind, ()), head)


def _decomposed(
    difference: Difference, settings: SpectrumSettings
) -> tuple[LowRank | None, _Values]:
    """Return the singular values of ΔW, and the approximation that they come from, if any."""
    least = min(difference.shape)
    if difference.update is not None:
        return None, _all_known(difference.update.singular_values())
    if least <= settings.exact:
        return None, _all_known(_exact_values(difference).numpy())
    fit = low_rank(difference.delta(torch.float32), min(settings.top, least))
    first = fit.singular_values.double().numpy()
    kept = float((first**2).sum())
    # The approximation's error is 1 − Σ σ²/‖ΔW‖² of ‖ΔW‖², from which ‖ΔW‖² follows.
    whole = kept / (1 - fit.relative_error**2) if fit.relative_error < 1 else 0.0
    return fit, _Values(first, whole, least, False, fit.relative_error, fit.bound)


def _all_known(values: np.ndarray) -> _Values:
    return _Values(values, float((values**2).sum()), len(values), True, 0.0, 0.0)


def _exact_values(difference: Difference) -> Tensor:
    """Return all singular values of ΔW in float64, through the R of QR factorisations by blocks."""
    rows, columns = difference.shape
    tall, wide = max(rows, columns), min(rows, columns)
    core: Tensor | None = None
    for start in range(0, tall, max(_ROWS, wide)):
        part = slice(start, min(start + max(_ROWS, wide), tall))
        block = (
            difference.delta(torch.float64, part)
            if rows >= columns
            else _columns(difference, part).T
        )
        core = block if core is None else torch.cat((core, block))
        if core.shape[0] > wide:
            core = torch.linalg.qr(core, mode="r")[1]
    assert core is not None
    return torch.linalg.svdvals(core)


def _columns(difference: Difference, part: slice) -> Tensor:
    assert difference.after is not None
    assert difference.before is not None
    return difference.after[:, part].double() - difference.before[:, part].double()


def _ranks(values: _Values, top: int) -> dict[str, Any]:
    """Return what the singular values say of the rank."""
    first, total = values.first, values.square_sum
    squares = first**2
    shares = np.cumsum(squares) / total if total else np.zeros(len(first))
    # ‖M − M_k‖² = ‖M − M_K‖² + Σ_{k<j≤K} σ_j²: summed from the small end, no digit is lost.
    after = np.append(np.cumsum(squares[::-1])[::-1], 0.0)[1:] / (total or 1.0)
    errors = [np.sqrt(after + rest**2)[:top] for rest in (values.rest, values.bound)]
    low, high = effective_rank_bounds(first, total, values.count)
    return {
        "singular_values": first[:top].tolist(),
        "energy": shares[:top].tolist(),
        "relative_error": errors[0].tolist(),
        "bound": errors[1].tolist(),
        "rank_for_90_percent": _reached(shares, 0.9),
        "rank_for_99_percent": _reached(shares, 0.99),
        "effective_rank": high if values.exact else None,
        "effective_rank_bounds": [low, high],
        "stable_rank": total / float(squares[0]) if total else 0.0,
    }


def _reached(shares: np.ndarray, share: float) -> int | None:
    """Return the first rank that holds a share of the energy; None if that is past those known."""
    found = np.flatnonzero(shares >= share - 1e-12)
    return int(found[0]) + 1 if len(found) else None


def _places(
    difference: Difference,
    fit: LowRank | None,
    settings: SpectrumSettings,
    other: Directions | None,
) -> dict[str, Any]:
    """Return where an update points: beside the base's directions, and another update's."""
    found: dict[str, Any] = {}
    least = min(difference.shape)
    count, k = min(settings.directions, least), min(settings.intruders, least)
    base = None if difference.before is None else difference.before.float()
    theirs = other(difference.name, count) if other and count else None
    if count and (base is not None or theirs is not None):
        update = _update_directions(difference, fit, count)
        if base is not None:
            found["base"] = _overlap(update, _first_vectors(base, count))
        if theirs is not None:
            found["other"] = _overlap(update, theirs)
    if k and base is not None:
        tuned = base + difference.delta(torch.float32)
        between = intruder_dimensions(base, tuned, k, settings.epsilon)
        found["intruders"] = {"of": k, "lower": between.lower, "upper": between.upper}
    return found


def _update_directions(
    difference: Difference, fit: LowRank | None, count: int
) -> tuple[Tensor, Tensor]:
    if difference.update is not None:
        left, right = difference.update.directions(count)
        return torch.from_numpy(np.ascontiguousarray(left)), torch.from_numpy(right)
    if fit is not None:
        return _vectors(fit, count)
    return _first_vectors(difference.delta(torch.float32), count)


def _first_vectors(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return _vectors(low_rank(matrix, count, exact=False, passes=_PASSES), count)


def _vectors(fit: LowRank, count: int) -> tuple[Tensor, Tensor]:
    """Return the first left (m, k) and right (n, k) vectors whose values are not zero."""
    values = fit.singular_values[:count]
    k = nonzero(np.where(values.numpy() > 1e-6 * float(values[0]), values.numpy(), 0.0))
    return (fit.left[:, :k] / values[:k]).double(), fit.right[:k].T.double()


def _overlap(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Return the angles between two pairs of subspaces in degrees, and what random ones share."""
    found: dict[str, Any] = {}
    for side, a, b in zip(("left", "right"), one, two, strict=True):
        angles = principal_angles(a, b)
        found[side] = {
            "overlap": float(torch.cos(angles).square().mean()),
            "chance": max(a.shape[1], b.shape[1]) / a.shape[0],
            "angles": [degrees(float(angle)) for angle in angles],
        }
    return found
