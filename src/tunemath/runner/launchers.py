"""What started this process: a run is one process on one device, whatever a launcher wishes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from tunemath.errors import RunError

__all__ = ["refuse_several_processes", "without_launcher"]

# By these accelerate finds out how many processes there are, by those which of them it is.
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_PLACES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
_LOCAL = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
_ACCELERATE = "ACCELERATE_"


def refuse_several_processes() -> None:
    """Raise `RunError` in each process of a launcher that started more than one."""
    for name, place in zip(_SIZES, _PLACES, strict=True):
        size, rank = os.environ.get(name, ""), os.environ.get(place, "")
        if not size.isdecimal() or int(size) < 2:
            continue
        if rank.isdecimal():
            started = f"process {int(rank)} of {int(size)}, counted from 0"
        else:
            started = f"one of {int(size)} processes ({name}={int(size)})"
        raise RunError(
            f"started by {_launcher()} as {started}; tunemath uses one process and one device: "
            "start it once, as `tunemath run …`, and choose the GPU with CUDA_VISIBLE_DEVICES"
        )


def _launcher() -> str:
    if any(name.startswith(_ACCELERATE) for name in os.environ):
        return "accelerate launch"
    return "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "a launcher"


@contextmanager
def without_launcher() -> Iterator[None]:
    """Hide what a launcher of one process set, which accelerate would take for settings of ours.

    ``accelerate launch`` hands on its own precision, compiler and sharding by the environment; a
    contract says all that a run does.
    """
    hidden = {name: os.environ.pop(name) for name in _set_by_launchers()}
    try:
        yield
    finally:
        for name in _set_by_launchers():
            del os.environ[name]
        os.environ.update(hidden)


def _set_by_launchers() -> list[str]:
    fixed = {*_SIZES, *_PLACES, *_LOCAL}
    return [name for name in os.environ if name in fixed or name.startswith(_ACCELERATE)]
