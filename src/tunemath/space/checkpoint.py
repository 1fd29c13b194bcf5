"""What tensors a model's files hold, from the headers of its safetensors files alone.

A safetensors file begins with the length n of its header (8 bytes, little-endian), then n bytes
of JSON that give each tensor's dtype, shape and place; the data follow, without a gap. No weight
is read. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from tunemath.errors import ModelError
from tunemath.reading import LONGEST_JSON, open_file, parse_json, read_file
from tunemath.shown import one_line, shown

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Checkpoint",
    "TensorHeader",
    "not_finite",
    "read_array",
    "read_checkpoint",
    "read_json",
    "read_tensor",
    "read_tensor_headers",
]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_LONGEST_HEADER = 100_000_000
_LONGEST_VALUE = 2**16
_LONGEST_NAME = 255
_LFS = b"version https://git-lfs"
_PART = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")

# Bits of an element, by the format's names: safetensors/src/tensor.rs.
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


class TensorHeader(NamedTuple):
    """A stored tensor: its dtype as safetensors writes it, its shape, and where its data lie."""

    dtype: str
    shape: tuple[int, ...]
    file: str
    """The file's name within the model's folder."""
    start: int
    """The first byte of the data, counted from the start of the file."""
    nbytes: int
    """The bytes of the data."""

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class Checkpoint(NamedTuple):
    """What a model's files hold."""

    tensors: dict[str, TensorHeader]
    """Every tensor by its name, in the files' order."""
    notes: tuple[str, ...] = ()
    """Where an index and its files do not agree, and what was counted."""


def read_tensor_headers(path: Path) -> dict[str, TensorHeader]:
    """Return the name and header of every tensor, in the files' order.

    ``path`` is a model's folder, a safetensors file, or the index of several.
    """
    return read_checkpoint(path).tensors


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the tensors of a model's folder, a safetensors file, or the index of several.

    Raises `ModelError` for a file that is cut short, damaged or lacking. An index that says less
    or other than its files is noted.
    """
    if path.is_dir():
        for name in (_SINGLE, _INDEX):
            if (path / name).is_file():
                return read_checkpoint(path / name)
        raise ModelError(_nothing_to_read(path))
    if path.suffix == ".json":
        return _read_index(path)
    part = _PART.search(path.name)
    if part and int(part[2]) > 1:
        raise ModelError(
            f"{path} is one file of {int(part[2])} and holds a part of the model; give their "
            "folder, or their index"
        )
    return Checkpoint(_read_file(path))


def read_tensor(folder: Path, header: TensorHeader) -> bytes:
    """Return the data of a small tensor, such as the shape that a packed weight had."""
    path = folder / header.file
    if header.nbytes > _LONGEST_VALUE:
        raise ModelError(
            f"{path} has {header.nbytes:,} bytes where a short description was expected; "
            "it is damaged, download it again"
        )
    with open_file(path, ModelError) as file:
        file.seek(header.start)
        return file.read(header.nbytes)


def read_array(folder: Path, header: TensorHeader) -> np.ndarray:
    """Return a stored floating-point tensor: mapped from the file, or float32 where NumPy lacks it.

    ``folder`` is where ``header.file`` lies. BF16 becomes float32 exactly: its bits are the upper
    half of a float32's. Raises `ModelError` for other dtypes than F64, F32, F16 and BF16.
    """
    import numpy as np

    path = folder / header.file
    stored = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}.get(header.dtype)
    if stored is None:
        raise ModelError(f"{path} has a tensor of {header.dtype}; expected F64, F32, F16 or BF16")
    if not header.size:
        return np.zeros(header.shape, np.float32)
    array = np.memmap(path, stored, "r", header.start, header.shape)
    if header.dtype != "BF16":
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)


def not_finite(path: Path, name: str, count: int) -> ModelError:
    """Return the error of a tensor that holds NaN or infinity."""
    return ModelError(
        f"{path}: {one_line(name, 200)} has {count:,} values that are not finite (NaN or "
        "infinity), as after a training that diverged; train again, or copy the file again"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds."""
    value = parse_json(read_file(path, ModelError, LONGEST_JSON), path, ModelError)
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def _read_index(index: Path) -> Checkpoint:
    """Return the tensors of the files that an index names.

    A tensor that it lists must be where it says; one that it does not list counts too, since
    transformers loads whole files.
    """
    content = read_json(index)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(f"{index} has no weight_map; download it again")
    folder = index.parent
    shards: dict[str, dict[str, TensorHeader]] = {}
    for name in sorted({str(place) for place in places.values()}):
        if (
            len(name) > _LONGEST_NAME
            or Path(name).name != name
            or not name.endswith(".safetensors")
        ):
            raise ModelError(
                f"{index} names {shown(name)}; expected a file of the same folder, whose name ends "
                "in .safetensors"
            )
        if not (folder / name).is_file():
            raise ModelError(f"{folder} lacks {name}, which its index names; download it again")
        shards[name] = _read_file(folder / name)
    try:
        listed = {tensor: shards[place][tensor] for tensor, place in places.items()}
    except KeyError as missing:
        tensor = str(missing.args[0])
        raise ModelError(
            f"{folder / str(places[tensor])} lacks {tensor}, which the index says it holds; "
            "download both again"
        ) from None
    rest = {
        tensor: header
        for shard in shards.values()
        for tensor, header in shard.items()
        if tensor not in listed
    }
    metadata = content.get("metadata")
    claimed = metadata.get("total_size") if isinstance(metadata, dict) else None
    return Checkpoint(listed | rest, tuple(_index_notes(index, shards, listed, rest, claimed)))


def _index_notes(
    index: Path,
    shards: Collection[str],
    listed: Mapping[str, TensorHeader],
    rest: Mapping[str, TensorHeader],
    claimed: Any,
) -> Iterator[str]:
    """Yield where an index and the headers of its files do not agree.

    ``claimed`` is its metadata.total_size, the bytes of all tensors.
    """
    parts = [part for part in map(_PART.search, shards) if part]
    count = max((int(part[2]) for part in parts), default=0)
    absent = sorted({*range(1, count + 1)} - {int(part[1]) for part in parts})
    if absent:
        numbers = ", ".join(map(str, absent[:6])) + (" …" if len(absent) > 6 else "")
        yield (
            f"{index} names no tensor of {len(absent)} of {count} files (number {numbers}), so "
            "what they hold is not counted; if the model has them, download the index again"
        )
    if rest:
        yield (
            f"{index} does not list {len(rest):,} of the tensors that its files hold, such as "
            f"{next(iter(rest))}; they are counted, since transformers loads them"
        )
    sums = [sum(header.nbytes for header in each.values()) for each in (listed, rest)]
    known = isinstance(claimed, int | float) and not isinstance(claimed, bool)
    if known and claimed not in (sums[0], sum(sums)):
        yield (
            f"{index} says in metadata.total_size that the tensors have {claimed:,} bytes, and "
            f"their headers say {sum(sums):,}, which is counted; if the model should be of the "
            "other size, download the index and its files again"
        )


def _read_file(path: Path) -> dict[str, TensorHeader]:
    with open_file(path, ModelError) as file:
        raw, data_bytes = _read_header(path, file)
    header = _parse(path, raw)
    header.pop("__metadata__", None)
    data, file_name = 8 + len(raw), path.name
    tensors = {name: _tensor(path, file_name, name, entry, data) for name, entry in header.items()}
    _hold_places(path, tensors, data, data_bytes)
    return tensors


def _read_header(path: Path, file: BinaryIO) -> tuple[bytes, int]:
    """Return the header, and how many bytes follow it."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    if start == _LFS[:8]:
        raise ModelError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`")
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise ModelError(f"{path} is not a safetensors file, or is cut short ({size:,} bytes)")
    if length > _LONGEST_HEADER:
        raise ModelError(
            f"{path} has a header of {length:,} bytes; safetensors allows {_LONGEST_HEADER:,}"
        )
    return file.read(length), size - 8 - length


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
        # A parser keeps the last of two equal names; as many places as names mean no two are equal.
        if isinstance(header, dict) and raw.count(b'"data_offsets"') != len(
            header.keys() - {"__metadata__"}
        ):
            json.loads(raw, object_pairs_hook=_without_duplicates)
    except _DuplicateError as twice:
        raise ModelError(
            f"{path} names {twice} twice in its header; it is damaged, download it again"
        ) from None
    except (ValueError, RecursionError):
        raise ModelError(f"{path} has a damaged safetensors header; download it again") from None
    if not isinstance(header, dict):
        raise ModelError(f"{path} has a safetensors header that is no JSON object")
    return header


class _DuplicateError(Exception):
    """Two entries of one JSON object have the same name."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateError(repr(Counter(name for name, _ in pairs).most_common(1)[0][0]))
    return found


def _tensor(path: Path, file: str, name: str, entry: Any, data: int) -> TensorHeader:
    """Return an entry of the header, its shape held against the bytes that it claims."""
    try:
        dtype, shape = entry["dtype"], entry["shape"]
        start, stop = entry["data_offsets"]
        bits = _BITS.get(dtype, 0)
        whole = {*map(type, shape), type(start), type(stop)} == {int}
    except (KeyError, TypeError, ValueError):
        raise ModelError(
            f"{path} has a header without dtype, shape or data_offsets for {name!r}"
        ) from None
    if not bits:
        raise ModelError(f"{path} stores {name} as {dtype!r}; known dtypes: {', '.join(_BITS)}")
    if not whole or min(shape, default=0) < 0 or math.prod(shape) * bits != (stop - start) * 8:
        raise ModelError(
            f"{path} says that {name} is {shape} of {dtype} at data_offsets [{start}, {stop}], "
            "which do not go together; it is damaged, download it again"
        )
    return TensorHeader(dtype, tuple(shape), file, data + start, stop - start)


def _hold_places(path: Path, tensors: dict[str, TensorHeader], data: int, data_bytes: int) -> None:
    """Hold the tensors' places against each other and the file: no gap, no overlap, no rest."""
    end = data
    for start, nbytes in sorted([(t.start, t.nbytes) for t in tensors.values()]):
        if start != end:
            raise ModelError(
                f"{path} has tensors that overlap or leave a gap at byte {end:,}; it is damaged, "
                "download it again"
            )
        end += nbytes
    if end - data != data_bytes:
        raise ModelError(
            f"{path} holds {data_bytes:,} bytes of weights where its header says {end - data:,}; "
            "it is cut short or damaged, download it again"
        )


def _nothing_to_read(folder: Path) -> str:
    """Say what a folder without model.safetensors holds instead, and what to do."""
    names = sorted(path.name for path in folder.iterdir())
    there = (", ".join(names[:6]) or "nothing") + (" …" if len(names) > 6 else "")
    pickles = [name for name in names if name.lower().endswith(_PICKLES)]
    if "adapter_config.json" in names:
        return (
            f"{folder} holds an adapter, not a model ({there}); give the base model's folder, "
            "which adapter_config.json names as base_model_name_or_path"
        )
    if pickles:
        return (
            f"{folder} has its weights only as pickle ({', '.join(pickles[:3])}), which can run "
            "any code when it is read, so it is refused. If you trust it, convert it once: "
            "AutoModelForCausalLM.from_pretrained(SOURCE).save_pretrained(TARGET) in "
            "transformers writes safetensors"
        )
    parts = [name for name in names if _PART.search(name)]
    if parts:
        return (
            f"{folder} holds {len(parts)} parts of a model ({parts[0]}, …) and no {_INDEX}, which "
            "says what belongs to it; download it too"
        )
    return (
        f"{folder} has no weights; expected {_SINGLE} or {_INDEX}, found {there}. "
        "Download the whole model, or give its config.json alone"
    )
