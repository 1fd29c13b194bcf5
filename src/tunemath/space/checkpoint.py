"""What tensors a model folder holds, from the headers of its safetensors files alone.

A safetensors file begins with the length n of its header (8 bytes, little-endian), then n bytes
of JSON that give each tensor's dtype, shape and place; the data follow. No weight is read.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tunemath.errors import ModelError

__all__ = ["TensorHeader", "read_json", "read_tensor_headers"]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_LONGEST_HEADER = 100 * 2**20


@dataclass(frozen=True)
class TensorHeader:
    """A stored tensor: its dtype as safetensors writes it, its shape, and its file."""

    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def read_tensor_headers(folder: Path) -> dict[str, TensorHeader]:
    """Return the name and header of every tensor of a model folder, in the files' order."""
    if (folder / _SINGLE).exists():
        return _read_file(folder / _SINGLE)
    if (folder / _INDEX).exists():
        return _read_index(folder)
    raise ModelError(_nothing_to_read(folder))


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def _read_index(folder: Path) -> dict[str, TensorHeader]:
    """Return the tensors that the index lists, from the files where it says they are."""
    places = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(f"{folder / _INDEX} has no weight_map; download it again")
    shards: dict[str, dict[str, TensorHeader]] = {}
    for name in sorted({str(place) for place in places.values()}):
        if Path(name).name != name:
            raise ModelError(
                f"{folder / _INDEX} names {name!r}; expected a file of the same folder"
            )
        if not (folder / name).exists():
            raise ModelError(f"{folder} lacks {name}, which its index names; download it again")
        shards[name] = _read_file(folder / name)
    missing = [tensor for tensor, place in places.items() if tensor not in shards[place]]
    if missing:
        raise ModelError(
            f"{folder / places[missing[0]]} lacks {missing[0]}, which the index says it holds; "
            "download both again"
        )
    return {tensor: shards[place][tensor] for tensor, place in places.items()}


def _read_file(path: Path) -> dict[str, TensorHeader]:
    try:
        with path.open("rb") as file:
            header, data_bytes = _read_header(path, file)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    header.pop("__metadata__", None)
    try:
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        tensors = {
            name: TensorHeader(str(entry["dtype"]), tuple(map(int, entry["shape"])), path.name)
            for name, entry in header.items()
        }
    except (KeyError, IndexError, TypeError, ValueError):
        raise ModelError(f"{path} has a header without dtype, shape or data_offsets") from None
    if end != data_bytes:
        raise ModelError(
            f"{path} holds {data_bytes:,} bytes of weights where its header says {end:,}; "
            "it is cut short or damaged, download it again"
        )
    return tensors


def _read_header(path: Path, file: BinaryIO) -> tuple[dict[str, Any], int]:
    """Return the header, and how many bytes follow it."""
    size = path.stat().st_size
    start = file.read(8)
    if start == b"version ":
        raise ModelError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull`")
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, _LONGEST_HEADER):
        raise ModelError(f"{path} is not a safetensors file, or is cut short ({size:,} bytes)")
    try:
        header = json.loads(file.read(length))
    except ValueError:
        raise ModelError(f"{path} has a damaged safetensors header; download it again") from None
    if not isinstance(header, dict):
        raise ModelError(f"{path} has a safetensors header that is no JSON object")
    return header, size - 8 - length


def _nothing_to_read(folder: Path) -> str:
    """Say what a folder without model.safetensors holds instead, and what to do."""
    names = sorted(path.name for path in folder.iterdir())
    there = ", ".join(names[:6]) + (" …" if len(names) > 6 else "")
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
    return (
        f"{folder} has no weights; expected {_SINGLE} or {_INDEX}, found {there}. "
        "Download the whole model"
    )
