from __future__ import annotations

import array_api_strict as strict
import numpy as np
import pytest
import torch

from tunemath.arrays import boolean, integer, numeric, positive
from tunemath.errors import MaskError, ShapeError


def test_numbers_and_lists_are_float64_numpy_arrays():
    _, a, b, c = numeric([1, 2], 3, np.int32(4))
    assert [x.dtype for x in (a, b, c)] == [np.float64] * 3


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.int64, torch.float64),
        (torch.bool, torch.float64),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtypes(dtype, expected):
    assert numeric(torch.ones(2, dtype=dtype))[1].dtype == expected


@pytest.mark.parametrize("other", [torch.ones(2), strict.ones(2, dtype=strict.float32)])
def test_numbers_beside_an_array_join_its_library_and_dtype(other):
    _, a, b, c = numeric(other, 0.5, [1.0, 2.0])
    assert type(b) is type(c) is type(a)
    assert b.dtype == c.dtype == a.dtype


def test_two_libraries_do_not_mix():
    with pytest.raises(TypeError, match=r"[Mm]ultiple"):
        numeric(torch.ones(2), np.ones(2))


def test_what_is_no_array_of_numbers():
    with pytest.raises(ShapeError, match="not rectangular"):
        numeric([[1.0, 2.0], [3.0]])
    with pytest.raises(ShapeError, match="expected numbers, got str"):
        numeric("0.5")
    with pytest.raises(ShapeError, match="expected integers"):
        integer(np, [0.5], like=np.ones(1))
    with pytest.raises(MaskError, match="other than 0 and 1"):
        boolean(numeric(1.0)[0], [0.5, 1.0], like=np.ones(2))


def test_numpy_integers_count():
    assert positive(rank=np.int64(3)) == (3,)


def test_the_gradient_flows_through():
    x = torch.ones(2, dtype=torch.float16, requires_grad=True)
    numeric(x)[1].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0]
