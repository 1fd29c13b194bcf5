"""Files that are not what they should be: what the libraries say of them, in one line."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tunemath.errors import ModelError, TunemathError, is_of_memory
from tunemath.runner.quiet import quiet_libraries
from tunemath.space import read_tensor_headers
from tunemath.space.checkpoint import not_finite

__all__ = ["loading_errors", "one_line", "read_model", "read_tensors"]

# What transformers, PEFT and safetensors raise for files that are damaged, lacking, of another
# model, or in need of a library that is not installed.
_OF_FILES = (
    OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError,
    RuntimeError, ImportError, AssertionError, SafetensorError, StrictDataclassError,
    HFValidationError,
)  # fmt: skip


def one_line(error: BaseException) -> str:
    """Return what an error says, without line breaks and at most 300 characters of it."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def loading_errors(what: str) -> Iterator[None]:
    """Load quietly inside; turn what goes wrong there into a `ModelError` that begins ``what``."""
    try:
        with quiet_libraries():
            yield
    except TunemathError:
        raise
    except _OF_FILES as error:
        if is_of_memory(error):
            raise
        raise ModelError(f"{what}: {one_line(error)}") from error


def read_model(kind: Any, folder: Path, name: str, **options: Any) -> Any:
    """Return the model that transformers reads from a folder, by a class such as AutoModel.

    Raises `ModelError` where it can't be read, or where its files lack a weight or have it in
    another shape, which transformers would draw at random. No pickle is read. Models that were let
    go are freed before: their parts know each other, so counting references doesn't do it.
    """
    gc.collect()
    read_tensor_headers(folder)  # names the file that is damaged or lacking
    place = "" if name == str(folder) else f" from {folder}"
    with loading_errors(f"cannot load {name}{place}"):
        model, found = kind.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, with the shapes
            **options,
        )
    for key, stored, shape in sorted(found["mismatched_keys"]):
        raise ModelError(
            f"{folder}: {key} is {list(stored)}, but by the configuration {list(shape)}; config "
            "and weights are not of one model"
        )
    lacking = sorted(found["missing_keys"])
    if lacking:
        raise ModelError(
            f"{folder}: the weights lack {len(lacking):,} of the parameters that "
            f"{type(model).__name__} has by its configuration, such as {lacking[0]}; config and "
            "weights are not of one model"
        )
    return model


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of an update's file; `ModelError` where it is lacking or damaged."""
    if not path.is_file():
        raise ModelError(
            f"{path} is missing, so the update is not whole; copy all of its folder, or train again"
        )
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path} is cut short or damaged ({one_line(error)}); copy it again, or train again"
        ) from error
    for name in tensors:
        odd = tensors[name].numel() - int(torch.isfinite(tensors[name]).sum())
        if odd:
            raise not_finite(path, name, odd)
    return tensors
