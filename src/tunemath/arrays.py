"""What the formulas accept: any array library, or plain numbers and lists.

A formula is written once against the Python array API standard. Its arguments may be NumPy
arrays, torch tensors (gradients flow), or arrays of any library of the standard; Python numbers
and lists become float64 NumPy arrays, or arrays of the other arguments' library.

Integers become float64. 16-bit floats become float32, in which the formulas are accurate.
"""

from __future__ import annotations

import operator
from typing import Any

import array_api_compat
import numpy as np

from tunemath.errors import MaskError, ShapeError

__all__ = ["boolean", "integer", "number", "numeric", "plain", "positive", "same_shape"]


def numeric(*values: Any) -> tuple[Any, ...]:
    """Return the array namespace of ``values``, and each of them as a floating-point array.

    >>> xp, a, b = numeric([1, 2], 0.5)
    >>> a.dtype, b.shape
    (dtype('float64'), ())
    """
    xp, like = _namespace(values)
    return xp, *(_floating(xp, _array(xp, value, like)) for value in values)


def boolean(xp: Any, mask: Any, like: Any) -> Any:
    """Return a mask of true/false or 0/1 as a boolean array of the library of ``like``."""
    array = _array(xp, mask, like)
    if xp.isdtype(array.dtype, "bool"):
        return array
    if not bool(xp.all((array == 0) | (array == 1))):
        raise MaskError(
            f"a mask of dtype {array.dtype} holds values other than 0 and 1; give booleans or 0/1 "
            "(labels become a mask by labels != -100)"
        )
    return xp.astype(array, xp.bool)


def integer(xp: Any, indices: Any, like: Any) -> Any:
    """Return indices as an int64 array of the library of ``like``."""
    array = _array(xp, indices, like)
    if not xp.isdtype(array.dtype, "integral"):
        raise ShapeError(f"indices have dtype {array.dtype}; expected integers such as token ids")
    return xp.astype(array, xp.int64, copy=False)


def number(array: Any) -> float:
    """Return a 0-d array as a Python float, cut off from any gradient."""
    return float(array.detach() if hasattr(array, "detach") else array)


def plain(array: Any) -> Any:
    """Return a 0-d NumPy array as a NumPy scalar, anything else as it is."""
    return array[()] if isinstance(array, np.ndarray) and array.ndim == 0 else array


def same_shape(**arrays: Any) -> None:
    """Refuse arrays whose shapes differ; nothing is broadcast."""
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ShapeError(f"shapes differ: {given}; expected one shape (nothing is broadcast)")


def positive(**numbers: Any) -> tuple[int, ...]:
    """Return each number as an int; refuse zero, negative numbers and fractions.

    >>> positive(rank=8, d_in=4096)
    (8, 4096)
    """
    for name, number in numbers.items():
        if isinstance(number, bool) or not hasattr(number, "__index__") or number < 1:
            raise ShapeError(f"{name} is {number!r}; expected an integer of 1 or more")
    return tuple(operator.index(number) for number in numbers.values())


def _namespace(values: tuple[Any, ...]) -> tuple[Any, Any]:
    """Return the library of the arrays among ``values``, and the first of these arrays."""
    arrays = [value for value in values if _is_array(value)]
    if not arrays:
        return array_api_compat.array_namespace(np.zeros(())), None
    return array_api_compat.array_namespace(*arrays), arrays[0]


def _is_array(value: Any) -> bool:
    return array_api_compat.is_array_api_obj(value) and not isinstance(value, np.generic)


def _array(xp: Any, value: Any, like: Any) -> Any:
    """Return ``value`` as an array on the device of ``like``."""
    if _is_array(value):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"a list that is not rectangular: {error}") from None
    if array.dtype.kind not in "biuf":
        raise ShapeError(f"expected numbers, got {type(value).__name__} of {array.dtype}")
    if like is None:
        return array
    if array.dtype.kind == "f" and xp.isdtype(like.dtype, "real floating"):
        return xp.asarray(array.tolist(), dtype=like.dtype, device=array_api_compat.device(like))
    return xp.asarray(array.tolist(), device=array_api_compat.device(like))


def _floating(xp: Any, array: Any) -> Any:
    if not xp.isdtype(array.dtype, "real floating"):
        return xp.astype(array, xp.float64)
    return xp.astype(array, xp.float32) if xp.finfo(array.dtype).bits < 32 else array
