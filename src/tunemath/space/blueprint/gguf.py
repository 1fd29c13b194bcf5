"""What a GGUF file holds, from its header: metadata, and each tensor's name, shape and type.

A file is a magic word, counts, key-value pairs, tensor infos, and the data after padding. Shapes
are stored from the fastest dimension to the slowest; they are turned round here. No weight is read.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

from tunemath.errors import ModelError
from tunemath.reading import open_file

__all__ = ["Gguf", "GgufTensor", "read_gguf"]

# Of each type: its name, the elements of a block and the bytes of one. gguf-py/gguf/constants.py.
_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4),
    27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_LONGEST_ARRAY = 4096
_MOST_DIMENSIONS = 4


class GgufTensor(NamedTuple):
    """A stored tensor: its type, its shape as the model uses it, and its bytes."""

    type: str
    shape: tuple[int, ...]
    nbytes: int


class Gguf(NamedTuple):
    """The header of a file, or of all parts of a model that was split."""

    metadata: dict[str, Any]
    """Scalars, strings and short arrays of numbers; longer ones, such as tokens, are left out."""
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> Gguf:
    """Return the header of a GGUF file; of a split model, those of all its parts together."""
    tensors: dict[str, GgufTensor] = {}
    metadata: dict[str, Any] = {}
    for part in _parts(path):
        header = _read_file(part)
        twice = tensors.keys() & header.tensors.keys()
        if twice:
            raise ModelError(f"{part} holds {min(twice)}, as another part does; download it again")
        tensors |= header.tensors
        metadata = header.metadata | metadata
    return Gguf(metadata, tensors)


def _parts(path: Path) -> list[Path]:
    match = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name)
    if not match:
        return [path]
    count = int(match[2])
    parts = [path.with_name(f"{match[1]}-{n + 1:05}-of-{match[2]}.gguf") for n in range(count)]
    lacking = next((part for part in parts if not part.is_file()), None)
    if lacking:
        raise ModelError(f"{path} is one of {count} parts and {lacking} is not there; download it")
    return parts


def _read_file(path: Path) -> Gguf:
    try:
        with open_file(path, ModelError) as file:
            start = file.read(8)
            if start.startswith(b"version "):
                raise ModelError(f"{path} is a Git LFS pointer, not the file; run `git lfs pull`")
            if len(start) < 8 or start[:4] != b"GGUF":
                raise ModelError(f"{path} is not a GGUF file ({start!r} at its start)")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Header(path, data).read()
    except (struct.error, UnicodeDecodeError, OverflowError):
        raise ModelError(f"{path} is cut short or damaged; download it again") from None


class _Header:
    """Reads a header from front to back."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 4
        # A version that is huge in this order of bytes is small in the other.
        self.order = ">" if int.from_bytes(data[4:8], "little") > 0xFFFF else "<"

    def read(self) -> Gguf:
        version = self.number("I")
        if version not in (2, 3):
            raise ModelError(f"{self.path} is GGUF version {version}; expected 2 or 3")
        tensor_count, pair_count = self.number("Q"), self.number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = self.string()
            value = self.value(self.number("I"))
            if value is not None:
                metadata[key] = value
        infos = [self.info() for _ in range(tensor_count)]
        tensors = {name: tensor for name, tensor, _ in infos}
        if len(tensors) != len(infos):
            raise ModelError(f"{self.path} names a tensor twice; it is damaged, download it again")
        self.hold_places(metadata.get("general.alignment", 32), infos)
        return Gguf(metadata, tensors)

    def number(self, kind: str) -> Any:
        form = self.order + kind
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def string(self) -> str:
        length = self.number("Q")
        if length > len(self.data) - self.at:
            raise struct.error
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def value(self, kind: int) -> Any:
        """Return a scalar, a string or a short array of numbers; skip longer ones."""
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise ModelError(f"{self.path} has a value of the unknown type {kind}; it is damaged")
        inner, count = self.number("I"), self.number("Q")
        if inner == _STRING:
            self.skip_strings(count)
            return None
        if inner not in _SCALARS:
            raise ModelError(f"{self.path} has an array of the unknown type {inner}; it is damaged")
        if count <= _LONGEST_ARRAY:
            return [self.number(_SCALARS[inner]) for _ in range(count)]
        self.at += count * struct.calcsize(self.order + _SCALARS[inner])
        return None

    def skip_strings(self, count: int) -> None:
        """Step over a vocabulary: some hundred thousand short strings."""
        at, data = self.at, self.data
        unpack = struct.Struct(self.order + "Q").unpack_from
        for _ in range(count):
            at += 8 + unpack(data, at)[0]
        self.at = at

    def info(self) -> tuple[str, GgufTensor, int]:
        """Return a tensor's name, the tensor, and where its data begin."""
        name, dimensions = self.string(), self.number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise ModelError(f"{self.path}: {name} has {dimensions} dimensions; it is damaged")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        kind, start = self.number("I"), self.number("Q")
        if kind not in _TYPES:
            known = ", ".join(each[0] for each in _TYPES.values())
            raise ModelError(f"{self.path}: {name} is of the unknown type {kind}; known: {known}")
        label, block, nbytes = _TYPES[kind]
        if shape and shape[-1] % block:
            raise ModelError(
                f"{self.path}: {name} has rows of {shape[-1]}, which {label} cannot pack in "
                f"blocks of {block}; it is damaged, download it again"
            )
        return name, GgufTensor(label, shape, math.prod(shape) // block * nbytes), start

    def hold_places(self, alignment: Any, infos: list[tuple[str, GgufTensor, int]]) -> None:
        """Hold the tensors' places against each other and the size of the file."""
        if not isinstance(alignment, int) or alignment < 1:
            raise ModelError(f"{self.path} has an alignment of {alignment!r}; it is damaged")
        begin = -(-self.at // alignment) * alignment
        end = 0
        for start, nbytes, name in sorted((start, t.nbytes, name) for name, t, start in infos):
            if start < end or start % alignment:
                raise ModelError(
                    f"{self.path}: {name} begins at {start:,}, inside another tensor or out of "
                    "step; it is damaged, download it again"
                )
            end = start + nbytes
        if begin + end > len(self.data):
            raise ModelError(
                f"{self.path} has {len(self.data):,} bytes where its header says {begin + end:,}; "
                "it is cut short, download it again"
            )
