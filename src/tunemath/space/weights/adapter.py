"""LoRA adapters as PEFT stores them: which tensors a module has, and a folder of new ones.

``ΔW = s·B A``. Of a linear layer A is (r, d_in) and B (d_out, r); a Conv1D's weight is stored
transposed, its factors are not; a convolution's A is (r, channels, *kernel), its B (d_out, r, 1…);
an embedding's A is (r, vocabulary) and B (width, r), and ΔW their transposed product.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.portable import portable
from tunemath.space.weights.rounding import Kept
from tunemath.space.weights.writer import Planned, write_checkpoint
from tunemath.storage import storage_errors, write_json

__all__ = [
    "CONFIG",
    "PREFIX",
    "WEIGHTS",
    "AdapterWriter",
    "Layout",
    "balanced",
    "inner",
    "kept_factors",
    "rank_patterns",
    "saved_names",
]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Layout:
    """How the two factors of a module are named and shaped in the file."""

    module: str
    embedding: bool = False
    kernel: tuple[int, ...] = ()
    """A convolution's (channels, *kernel); empty for other modules."""

    def keys(self) -> tuple[str, str]:
        """Return the names of A and B."""
        parts = ("lora_embedding_A", "lora_embedding_B")
        if not self.embedding:
            parts = ("lora_A.weight", "lora_B.weight")
        return f"{PREFIX}{self.module}.{parts[0]}", f"{PREFIX}{self.module}.{parts[1]}"

    def shaped(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return A (r, d_in) and B (d_out, r) in the shapes that are stored."""
        if not self.kernel:
            return a, b
        ones = (1,) * (len(self.kernel) - 1)
        return a.reshape(len(a), *self.kernel), b.reshape(*b.shape, *ones)

    @classmethod
    def of(cls, module: str, shapes: Mapping[str, Sequence[int]]) -> Layout:
        """Return the layout of a module in a file whose tensors have these shapes."""
        plain, embedding = cls(module), cls(module, embedding=True)
        if embedding.keys()[0] in shapes:
            return embedding
        shape = tuple(shapes[plain.keys()[0]])
        return cls(module, kernel=shape[1:]) if len(shape) > 2 else plain


def balanced(left: Tensor, right: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return A and B of equal norms with ``s·B A = left right``, float32.

    ``left`` (m, r) holds the left singular vectors times the singular values, ``right`` (r, n) the
    right ones. Each factor takes a root of the values, so neither over- nor underflows in a short
    dtype; a negative s turns B's sign.
    """
    share = values.double() / abs(scale)
    root = share.sqrt()
    unit = left.double() / torch.where(values > 0, values, 1).double()
    sign = math.copysign(1.0, scale)
    return (root[:, None] * right.double()).float(), (unit * root * sign).float()


def inner(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """Return ⟨B A, B' A'⟩ = Σ (BᵀB') ∘ (A A'ᵀ) without forming either product, in float64."""
    (a, b), (c, d) = ((x.double(), y.double()) for x, y in (first, second))
    return float(((b.T @ d) * (a @ c.T)).sum())


def kept_factors(exact: tuple[Tensor, Tensor], stored: tuple[Tensor, Tensor]) -> Kept:
    """Return how much of the product of two factors is left in their rounded ones."""
    along, update, moved = inner(stored, exact), inner(exact, exact), inner(stored, stored)
    # B A − B' A' as one product of concatenated factors, so that nothing cancels but itself.
    (a, b), (c, d) = exact, stored
    change = torch.cat([a.double(), c.double() - a]), torch.cat([b.double() - d, -d.double()], 1)
    return Kept(along, update, max(0.0, inner(change, change)), moved)


def rank_patterns(
    ranks: Mapping[str, int], scales: Mapping[str, float], rslora: bool = False
) -> dict[str, Any]:
    """Return r, lora_alpha and the patterns that give each module its rank and scale.

    α = s·r, or s·√r with rsLoRA. The commonest pair needs no pattern.
    """
    pairs = {name: (r, scales[name] * (math.sqrt(r) if rslora else r)) for name, r in ranks.items()}
    (rank, alpha), _ = Counter(pairs.values()).most_common(1)[0]
    patterns = {f"^{re.escape(name)}": pair for name, pair in pairs.items()}
    return {
        "r": rank,
        "lora_alpha": _whole(alpha),
        "rank_pattern": {key: r for key, (r, _) in patterns.items() if r != rank},
        "alpha_pattern": {key: _whole(a) for key, (_, a) in patterns.items() if a != alpha},
    }


def _whole(number: float) -> float | int:
    return int(number) if number == int(number) else number


def saved_names(chosen: Collection[str], others: Collection[str]) -> list[str]:
    """Return names that mean the modules to save and no other: their last parts where these do."""
    short = sorted({name.rpartition(".")[2] for name in chosen})
    if not any(name.endswith(tuple(short)) for name in others):
        return short
    return sorted(chosen)


class AdapterWriter:
    """Factors as they are computed, laid aside on disk, then one file with all: never all at once.

    ``folder`` is where the adapter is to be; ``dtype`` that of the factors.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder, self.dtype = folder, dtype
        self.plan: dict[str, Planned] = {}
        self._read: dict[str, Callable[[], Tensor]] = {}

    def add(self, layout: Layout, a: Tensor, b: Tensor) -> Kept:
        """Lay A (r, d_in) and B (d_out, r) aside, rounded; return how much of B A is left."""
        stored = a.to(self.dtype), b.to(self.dtype)
        path = self.folder / f".{len(self.plan)}.part"
        tensors = dict(zip(layout.keys(), layout.shaped(*stored), strict=True))
        with storage_errors(path):
            save_file({key: each.contiguous() for key, each in tensors.items()}, path)
        for key, each in tensors.items():
            self.plan[key] = Planned(each.dtype, tuple(each.shape))
            self._read[key] = lambda key=key: load_file(path)[key]
        if self.dtype == torch.float32:
            along = inner((a, b), (a, b))
            return Kept(along, along, 0.0, along)
        return kept_factors((a, b), stored)

    def whole(self, key: str, planned: Planned, read: Callable[[], Tensor]) -> None:
        """Have a tensor that is no factor written too, as ``read`` gives it."""
        self.plan[key] = planned
        self._read[key] = lambda: read().to(planned.dtype)

    def write(self, config: AdapterConfig) -> None:
        """Write the adapter's two files, and clear what was laid aside."""

        def make(key: str) -> Iterator[Tensor]:
            yield self._read[key]()

        plan = dict(sorted(self.plan.items()))
        write_checkpoint(self.folder, plan, make, dict.fromkeys(plan, WEIGHTS))
        for path in self.folder.glob(".*.part"):
            path.unlink()
        write_json(self.folder / CONFIG, portable(config))
