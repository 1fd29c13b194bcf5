"""The errors a user can meet.

::

    TunemathError                       exit code 2, one or two lines, no traceback
    ├── ContractError   (ValueError)    the file of the five choices
    ├── DataError       (ValueError)    a row of a data set: file and line are named
    ├── MaskError       (ValueError)    nothing supervised, or a mask that does not fit
    ├── ShapeError      (ValueError)    arrays whose shapes do not go together
    ├── ModelError      (ValueError)    a model that cannot be found, read or adapted
    ├── CourseError     (ValueError)    an exercise or an answer that cannot be found
    ├── RunError        (RuntimeError)  a run folder that says no
    └── StorageError    (OSError)       a disk that is full, a folder that may not be written

Every message says what was given, what was expected, where, and the fix.
"""

from __future__ import annotations

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
]


class TunemathError(Exception):
    """Something the user can put right; the message says how."""


class ContractError(TunemathError, ValueError):
    """The contract cannot be read, or says something that has no meaning."""


class DataError(TunemathError, ValueError):
    """A row of a data set is malformed, empty or too long."""


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
