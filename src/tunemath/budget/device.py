"""How much memory there is, and sizes as people write them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Literal, NamedTuple

__all__ = ["Device", "parse_size", "this_device"]

_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([KMGT]?)(iB|B)?\s*", re.IGNORECASE | re.ASCII)
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_NVIDIA = Path("/dev/nvidiactl")
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


class Device(NamedTuple):
    """Where a step would run, and its memory in bytes; None where it can't be told."""

    kind: Literal["cpu", "cuda"]
    memory: int | None


def this_device() -> Device:
    """Return this machine's first GPU, or else its processor with all of its memory.

    A container's own limit counts where it is lower. Needs no torch: a GPU is asked by
    ``nvidia-smi``.
    """
    if _NVIDIA.exists():
        return Device("cuda", _of_gpu())
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return Device("cpu", None)
    for path in _LIMITS:
        try:
            memory = min(memory, int(path.read_text("ascii")))
        except (OSError, ValueError):
            continue
    return Device("cpu", memory)


def _of_gpu() -> int | None:
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
        return int(asked.stdout.splitlines()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 24GiB, 24G, 80GB or 500MB.

    KiB, MiB, GiB and TiB, with or without ``iB``, are powers of 1024; kB, MB, GB and TB of 1000.

    >>> parse_size("24GiB"), parse_size("80 GB")
    (25769803776, 80000000000)
    """
    found = _SIZE.fullmatch(text)
    if found is None or (not found[2] and (found[3] or "").lower() == "ib"):
        raise ValueError(f"{text!r:.80} is no size; expected one such as 24GiB or 80GB")
    base = 1000 if found[2] and (found[3] or "").lower() == "b" else 1024
    return int(float(found[1]) * base ** _UNITS[found[2].upper()])
