"""The C library's allocator, told to hold no more than is in use."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

__all__ = ["give_back_blocks"]

_M_MMAP_THRESHOLD = -3  # malloc.h
_LARGE = 4 * 2**20


@cache
def give_back_blocks() -> None:
    """Have each block of 4 MiB or more mapped by itself and given back once it is freed.

    By default glibc's heap takes blocks up to 32 MiB, and aligned ones, as torch's are, leave gaps
    that the next of their size don't fit into: a step holds up to twice what it uses.

    Nothing is done where the C library isn't glibc, or the user set the threshold. Source:
    mallopt(3).
    """
    if not sys.platform.startswith("linux") or _chosen_by_user():
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE)


def _chosen_by_user() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return "MALLOC_MMAP_THRESHOLD_" in os.environ or "malloc.mmap_threshold" in tunables
