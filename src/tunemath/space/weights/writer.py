"""A checkpoint written as its tensors are computed: headers first, then the data in their order.

What tensors there will be is known beforehand, so nothing has to be kept for the end.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from tunemath.errors import ModelError
from tunemath.space.checkpoint import TensorHeader
from tunemath.space.weights.reader import TORCH_DTYPES
from tunemath.storage import storage_errors, write_json

__all__ = ["Planned", "in_files_of", "sharded", "write_checkpoint"]

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class Planned(NamedTuple):
    """A tensor that will be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


def in_files_of(tensors: Mapping[str, TensorHeader]) -> dict[str, str]:
    """Return each tensor's file, divided as the checkpoint that it comes from is."""
    files = sorted({header.file for header in tensors.values()})
    names = {file: _part(place, len(files)) for place, file in enumerate(files)}
    return {name: names[header.file] for name, header in tensors.items()}


def sharded(plan: Mapping[str, Planned], limit: int) -> dict[str, str]:
    """Return each tensor's file, so that none is over ``limit`` bytes unless by one tensor."""
    places: dict[str, int] = {}
    count, filled = 0, 0
    for name, planned in plan.items():
        if filled and filled + planned.nbytes > limit:
            count, filled = count + 1, 0
        places[name] = count
        filled += planned.nbytes
    return {name: _part(place, count + 1) for name, place in places.items()}


def _part(place: int, count: int) -> str:
    return _SINGLE if count == 1 else f"model-{place + 1:05d}-of-{count:05d}.safetensors"


def write_checkpoint(
    folder: Path,
    plan: Mapping[str, Planned],
    make: Callable[[str], Iterable[Tensor]],
    files: Mapping[str, str],
    tick: Callable[[int], None] = lambda done: None,
) -> None:
    """Write the tensors of ``plan`` to ``folder``, with an index if they are in several files.

    ``make`` is asked for each tensor once, file by file, and gives consecutive parts of it along
    its first axis, each in the planned dtype. ``files`` says which file each goes to. ``tick``
    hears how many tensors are done.
    """
    done = 0
    for file in dict.fromkeys(files[name] for name in plan):
        # Wider dtypes first, so that all data stand at multiples of their size.
        names = sorted(
            (name for name in plan if files[name] == file),
            key=lambda name: -plan[name].dtype.itemsize,
        )
        path = folder / file
        with storage_errors(path), path.open("xb") as handle:
            handle.write(_header({name: plan[name] for name in names}))
            for name in names:
                _write(handle, name, plan[name], make(name))
                done += 1
                tick(done)
            handle.flush()
            os.fsync(handle.fileno())
    if len(set(files.values())) > 1:
        total = sum(planned.nbytes for planned in plan.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
        write_json(folder / _INDEX, index)


def _header(plan: Mapping[str, Planned]) -> bytes:
    """Return a safetensors file's beginning: length, then JSON, to a multiple of eight bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, planned in plan.items():
        stop = start + planned.nbytes
        entries[name] = {
            "dtype": _NAMES[planned.dtype],
            "shape": list(planned.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _write(handle: BinaryIO, name: str, planned: Planned, parts: Iterable[Tensor]) -> None:
    written = 0
    for part in parts:
        if part.dtype != planned.dtype:
            raise ModelError(f"{name} was made as {part.dtype}; planned: {planned.dtype}")
        flat = part.detach().contiguous().reshape(-1).view(torch.uint8)
        handle.write(flat.numpy().data)
        written += flat.numel()
    if written != planned.nbytes:
        raise ModelError(f"{name} was made with {written:,} bytes; planned: {planned.nbytes:,}")
