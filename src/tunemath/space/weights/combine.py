"""Several checkpoints of one architecture made into one, in parts of one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunemath.errors import ContractError, ModelError
from tunemath.space.checkpoint import read_json
from tunemath.space.weights.mixing import Mix, drop_and_rescale, generator, slerp_weights, threshold
from tunemath.space.weights.reader import TORCH_DTYPES, Weights, row_blocks
from tunemath.space.weights.rounding import Kept
from tunemath.space.weights.writer import Planned, in_files_of, write_checkpoint
from tunemath.storage import write_json

__all__ = ["Combination", "Moved", "combine"]

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_BLOCK = 2**18  # small enough for a cache, and for what the allocator does not give back


@dataclass(frozen=True)
class Moved:
    """What a tensor of the product has of the change that was computed for it."""

    name: str
    norm: float
    """‖ΔW‖_F of the computed change from the base."""
    survived: float
    """⟨m, ΔW⟩ / ‖ΔW‖² for what the stored numbers moved by; 1 where rounding lost nothing."""
    error: float
    """‖m − ΔW‖ / ‖ΔW‖."""


@dataclass
class Combination:
    """What a combined model has; without a base, nothing is measured against it."""

    tensors: list[Moved] = field(default_factory=list)
    kept: Kept = field(default_factory=Kept)

    def summary(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        whole = {"survived": self.kept.share, "rounding": self.kept.error} if self.tensors else {}
        norm = math.sqrt(self.kept.update)
        return {**whole, "norm": norm, "tensors": [asdict(each) for each in self.tensors]}


def combine(
    models: Sequence[Path],
    out: Path,
    mix: Mix,
    *,
    base: Path | None = None,
    dtype: str | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Combination:
    """Write weights, index and config.json of the combination of some checkpoints to ``out``.

    Methods on task vectors need ``base``; with the others it is only measured against. Floating
    point tensors are stored in ``dtype``, that of the base or the first model if None, and divided
    into files as there; others have to be equal in all models. Raises `ModelError` where the
    models' tensors differ in name or shape.
    """
    if mix.on_deltas and base is None:
        raise ContractError(f"--method {mix.method} works on changes of a base; give --base")
    if len(models) != len(mix.weights):
        raise ContractError(f"{len(models)} models and {len(mix.weights)} weights; give one each")
    mixer = _Mixer([Weights(path) for path in models], base and Weights(base), mix)
    first = mixer.base or mixer.models[0]
    mixer.refuse_unequal(first)
    plan = {}
    for name, header in first.tensors.items():
        stored = TORCH_DTYPES[header.dtype]
        wanted = getattr(torch, dtype) if dtype and stored in _FLOATS else stored
        plan[name] = Planned(wanted, header.shape)
    result = Combination()

    def make(name: str) -> Iterator[Tensor]:
        wanted, kept = plan[name].dtype, Kept()
        if wanted not in _FLOATS:
            yield from mixer.equal(name)
            return
        for before, after in mixer.parts(name):
            made = after.to(wanted)
            if before is not None:
                # R(W + ΔW) − R(W): what of the change is seen in the numbers as they are stored.
                kept.add(made.float() - before.to(wanted).float(), after - before)
            yield made
        if mixer.base is not None:
            result.kept.also(kept)
            norm = math.sqrt(kept.update)
            result.tensors.append(Moved(name, norm, kept.share, kept.error))

    files = in_files_of(first.tensors)
    write_checkpoint(out, plan, make, files, lambda done: tick(done, len(plan)))
    _write_config(first.folder, out, dtype)
    return result


def _write_config(source: Path, out: Path, dtype: str | None) -> None:
    """Write the configuration of a model with the dtype that its weights have now."""
    if not (source / "config.json").is_file():
        return
    config = read_json(source / "config.json")
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    write_json(out / "config.json", config)


@dataclass(frozen=True)
class _Mixer:
    models: list[Weights]
    base: Weights | None
    mix: Mix

    def refuse_unequal(self, first: Weights) -> None:
        """Raise where a model lacks a tensor that another has, or has it in another shape."""
        for other in self.models:
            differ = first.tensors.keys() ^ other.tensors.keys()
            if differ:
                name = sorted(differ)[0]
                has, lacks = (first, other) if name in first.tensors else (other, first)
                raise ModelError(
                    f"{has.folder} has {name}, which {lacks.folder} does not ({len(differ)} such); "
                    "expected checkpoints of one architecture that store the same tensors"
                )
            for name, header in first.tensors.items():
                shape = other.tensors[name].shape
                if shape != header.shape:
                    raise ModelError(
                        f"{name} is {list(header.shape)} in {first.folder} and {list(shape)} in "
                        f"{other.folder}; expected equal shapes, give models of one base"
                    )
                ours, theirs = header.dtype, other.tensors[name].dtype
                if len({TORCH_DTYPES.get(dtype) in _FLOATS for dtype in (ours, theirs)}) > 1:
                    raise ModelError(
                        f"{name} is stored as {ours} in {first.folder} and as {theirs} in "
                        f"{other.folder}; give unquantised models"
                    )

    def equal(self, name: str) -> Iterator[Tensor]:
        """Yield a tensor of whole numbers, which all models must have alike."""
        first = self.base or self.models[0]
        for rows in row_blocks(first.tensors[name].shape, _BLOCK):
            part = first.read(name, rows)
            for model in self.models:
                if not torch.equal(model.read(name, rows), part):
                    raise ModelError(
                        f"{name} is stored as {part.dtype} and differs between {first.folder} and "
                        f"{model.folder}; only floating-point tensors can be combined"
                    )
            yield part

    def parts(self, name: str) -> Iterator[tuple[Tensor | None, Tensor]]:
        """Yield the base's consecutive parts of a tensor, and the product's, float32."""
        mix = self.mix
        shape = (self.base or self.models[0]).tensors[name].shape
        first, second = self._slerp(name, shape) if mix.method == "slerp" else (0.0, 0.0)
        least = self._thresholds(name)
        random = [generator(mix.seed, name, place) for place in range(len(self.models))]
        for rows in row_blocks(shape, _BLOCK):
            before = None if self.base is None else self.base.read(name, rows).float()
            tensors = [model.read(name, rows).float() for model in self.models]
            if mix.method == "slerp":
                yield before, first * tensors[0] + second * tensors[1]
                continue
            if not mix.on_deltas or before is None:
                yield before, mix.summed(tensors)
                continue
            deltas = [tensor - before for tensor in tensors]
            if mix.method == "ties":
                deltas = [d * (d.abs() >= t) for d, t in zip(deltas, least, strict=True)]
            elif mix.sparse:
                pairs = zip(deltas, random, strict=True)
                deltas = [drop_and_rescale(delta, mix.density, each) for delta, each in pairs]
            yield before, before + mix.summed(deltas)

    def _thresholds(self, name: str) -> list[float]:
        """Return of each model the least magnitude of a change that TIES keeps."""
        if self.mix.method != "ties" or self.mix.density == 1 or self.base is None:
            return [0.0] * len(self.models)
        found = []
        for model in self.models:
            magnitudes = model.read(name).float() - self.base.read(name)
            found.append(threshold(magnitudes.abs_(), self.mix.density))
        return found

    def _slerp(self, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
        """Return the two factors of a tensor."""
        sums = [0.0, 0.0, 0.0]
        for rows in row_blocks(shape, _BLOCK):
            one, two = (model.read(name, rows).double() for model in self.models)
            for place, product in enumerate((one * one, two * two, one * two)):
                sums[place] += float(product.sum())
        return slerp_weights(math.sqrt(sums[0]), math.sqrt(sums[1]), sums[2], self.mix.fraction)
