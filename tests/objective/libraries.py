"""The array libraries that every formula runs on, for tests.

    from libraries import LIBRARIES, same

    @pytest.mark.parametrize("make", LIBRARIES.values(), ids=LIBRARIES)
    def test_equals_the_loop(make):
        np.testing.assert_allclose(same(formula(make(rows))), naive(rows))

``make`` turns NumPy arrays, lists or numbers into the library's own array, in float64 (JAX in its
64-bit mode, which is switched on for the tests); ``same`` turns a result into float64 NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_strict
import jax
import numpy as np
import torch

__all__ = ["LIBRARIES", "same"]

jax.config.update("jax_enable_x64", True)

LIBRARIES: dict[str, Callable[[Any], Any]] = {
    "numpy": np.asarray,
    "strict": array_api_strict.asarray,
    "torch": torch.tensor,
    "jax": jax.numpy.asarray,
}


def same(array: Any) -> np.ndarray:
    """Return any library's array as NumPy; floating-point ones as float64."""
    values = np.asarray(array.detach() if isinstance(array, torch.Tensor) else array)
    return values.astype(np.float64) if values.dtype.kind == "f" else values
