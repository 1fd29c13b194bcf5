"""What the formulas accept: any array library, or plain numbers and lists.

A formula is written once against the Python array API standard. Its arguments may be NumPy
arrays, torch tensors (gradients flow), or arrays of any library of the standard; Python numbers
and lists become float64 NumPy arrays, or arrays of the other arguments' library.

Integers become float64 (float32 under JAX without x64). 16-bit floats become float32, in which
the formulas are accurate.

Checks that look at values are left out while a compiler or vmap traces (`known`): there are no
values to look at then.
"""

from __future__ import annotations

import operator
import sys
from typing import Any

import array_api_compat
import numpy as np

from tunemath.errors import MaskError, ShapeError

__all__ = [
    "boolean",
    "constant",
    "count_dtype",
    "float_dtype",
    "integer",
    "known",
    "number",
    "numeric",
    "plain",
    "positive",
    "same_shape",
]


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
    if known(~xp.all((array == 0) | (array == 1))):
        raise MaskError(
            f"a mask of dtype {array.dtype} holds values other than 0 and 1; give booleans or 0/1 "
            "(labels become a mask by labels != -100)"
        )
    return xp.astype(array, xp.bool)


def integer(xp: Any, indices: Any, like: Any) -> Any:
    """Return indices as int64 (int32 under JAX without x64) in the library of ``like``."""
    array = _array(xp, indices, like)
    if not xp.isdtype(array.dtype, "integral"):
        raise ShapeError(f"indices have dtype {array.dtype}; expected integers such as token ids")
    return xp.astype(array, count_dtype(xp), copy=False)


def count_dtype(xp: Any) -> Any:
    """Return the widest integer dtype that the library has switched on."""
    return xp.result_type(int) if array_api_compat.is_jax_namespace(xp) else xp.int64


def float_dtype(xp: Any) -> Any:
    """Return the widest floating-point dtype that the library has switched on."""
    return xp.result_type(float) if array_api_compat.is_jax_namespace(xp) else xp.float64


def known(condition: Any) -> bool | None:
    """Return a 0-d condition as a bool, or None where its value can't be looked at.

    That is so inside ``jax.jit``, ``jax.vmap``, ``torch.func.vmap`` and ``torch.compile``.

    >>> known(True), known(np.asarray(1.0) > 2)
    (True, False)
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.compiler.is_compiling():
        return None
    try:
        return bool(condition)
    except (TypeError, RuntimeError):  # JAX raises the first for a tracer, torch's vmap the second
        return None


def constant(array: Any) -> Any:
    """Return the array cut off from any gradient.

    >>> constant(np.asarray([1.0])).tolist()
    [1.0]
    """
    if array_api_compat.is_jax_array(array):
        return sys.modules["jax"].lax.stop_gradient(array)
    return array.detach() if array_api_compat.is_torch_array(array) else array


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
        if like is not None and isinstance(value, np.ndarray) != isinstance(like, np.ndarray):
            raise TypeError(
                f"{type(value).__name__} beside {type(like).__name__}; expected arrays of one "
                "library (lists go with any)"
            )
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
        # As numeric() would make of it: a number beside 16-bit arrays keeps float32's digits.
        dtype = xp.float32 if xp.finfo(like.dtype).bits < 32 else like.dtype
        return xp.asarray(array.tolist(), dtype=dtype, device=array_api_compat.device(like))
    return xp.asarray(array.tolist(), device=array_api_compat.device(like))


def _floating(xp: Any, array: Any) -> Any:
    if not xp.isdtype(array.dtype, "real floating"):
        return xp.astype(array, float_dtype(xp))
    return xp.astype(array, xp.float32) if xp.finfo(array.dtype).bits < 32 else array
