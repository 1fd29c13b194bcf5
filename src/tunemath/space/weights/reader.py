"""A checkpoint's tensors, read one at a time, or some rows of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tunemath.errors import ModelError
from tunemath.space.checkpoint import TensorHeader, read_checkpoint

__all__ = ["TORCH_DTYPES", "Weights", "row_blocks"]

TORCH_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16,
    "I16": torch.int16, "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64,
    "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32,
    "F64": torch.float64, "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
"""torch's dtypes by safetensors' names."""

_BLOCK = 2**23


class Weights:
    """The tensors of a model's folder, a safetensors file, or the index of several.

    Raises `ModelError` for files that are damaged or lacking. What is read is mapped from the
    file: pages of it are in memory only while they are looked at, and writing to it changes no
    file.
    """

    def __init__(self, path: Path) -> None:
        checkpoint = read_checkpoint(path)
        self.folder = path if path.is_dir() else path.parent
        self.tensors: dict[str, TensorHeader] = checkpoint.tensors
        """Name to header, in the files' order."""
        self.notes = checkpoint.notes
        """Where an index and its files do not agree."""
        self._open: dict[str, Any] = {}

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """Return a tensor as it is stored, or some of its rows: a part along the first axis."""
        header = self.tensors[name]
        dtype = TORCH_DTYPES.get(header.dtype)
        if dtype is None:
            raise ModelError(
                f"{self.folder / header.file} stores {name} as {header.dtype}, which torch has no "
                f"dtype for; known: {', '.join(TORCH_DTYPES)}"
            )
        if not header.size:
            return torch.zeros(header.shape, dtype=dtype)[rows if rows is not None else ...]
        try:
            file = self._file(header.file)
            return file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"{self.folder / header.file}: {name} cannot be read ({error}); copy it again"
            ) from error

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.folder / name, framework="pt")
        return self._open[name]


def row_blocks(shape: tuple[int, ...], elements: int = _BLOCK) -> Iterator[slice | None]:
    """Yield parts along the first axis that have at most so many elements, or one row.

    None stands for the whole of a tensor without axes.
    """
    if not shape:
        yield None
        return
    width = 1
    for size in shape[1:]:
        width *= size
    step = max(1, elements // max(1, width))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))
