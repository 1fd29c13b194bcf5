"""The errors a user can meet.

::

    TunemathError                       exit code 2, a line, no traceback
    ├── ContractError   (ValueError)    the file of the five choices
    ├── DataError       (ValueError)    rows of a data set: file and line of each are named
    ├── MaskError       (ValueError)    nothing supervised, or a mask that does not fit
    ├── ShapeError      (ValueError)    arrays whose shapes do not go together
    ├── ModelError      (ValueError)    a model that cannot be found, read or adapted
    ├── CourseError     (ValueError)    an exercise or an answer that cannot be found
    ├── RunError        (RuntimeError)  a run folder that says no
    └── StorageError    (OSError)       a disk that is full, a folder that may not be written

Every message says what was given, what was expected, where, and the fix.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ContractError",
    "CourseError",
    "DataError",
    "MaskError",
    "ModelError",
    "RunError",
    "ShapeError",
    "StorageError",
    "TunemathError",
    "is_of_memory",
]

# What torch says where an allocation fails, by its class or by its words.
_OF_MEMORY = ("OutOfMemoryError", "can't allocate memory", "out of memory")


class TunemathError(Exception):
    """Something the user can put right; the message says how."""


class ContractError(TunemathError, ValueError):
    """The contract cannot be read, or says something that has no meaning."""


class DataError(TunemathError, ValueError):
    """Rows of a data set are malformed, empty or too long.

    ``faults`` are those of the single rows or files, told below the message in a line each.
    """

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join([message, *faults]))
        self.message = message
        self.faults = tuple(faults)


class MaskError(TunemathError, ValueError):
    """A mask selects nothing, or does not have the shape of what it masks."""


class ShapeError(TunemathError, ValueError):
    """Arrays whose shapes do not go together."""


class ModelError(TunemathError, ValueError):
    """A model cannot be found, read or adapted as asked."""


class CourseError(TunemathError, ValueError):
    """An exercise that there isn't, or an answer that cannot be found."""


class RunError(TunemathError, RuntimeError):
    """A run folder refuses: another contract's weights, a missing product, a broken hash."""


class StorageError(TunemathError, OSError):
    """The disk is full, or a folder may not be written."""


def is_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory.

    >>> is_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    True
    """
    words = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or any(each in words for each in _OF_MEMORY)
