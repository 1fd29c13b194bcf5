from __future__ import annotations

import array_api_strict as strict
import jax
import numpy as np
import pytest
import torch

from tunemath.arrays import (
    boolean,
    constant,
    count_dtype,
    integer,
    known,
    number,
    numeric,
    positive,
    same_shape,
)
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


def test_a_condition_is_known_unless_traced():
    seen = []

    def look(x):
        seen.append(known(x > 0))
        return x

    for one in (torch.ones(()), strict.ones(()), jax.numpy.ones(()), np.ones(())):
        look(one)
    jax.grad(look)(1.0)
    torch.func.grad(look)(torch.ones(()))
    assert seen == [True] * 6
    seen.clear()
    jax.jit(look)(1.0)
    jax.vmap(look)(jax.numpy.ones(2))
    torch.func.vmap(look)(torch.ones(2))
    assert seen == [None] * 3


def test_a_constant_has_no_gradient():
    assert torch.func.grad(lambda x: x * constant(x))(torch.tensor(3.0)) == 3.0
    assert jax.jit(jax.grad(lambda x: x * constant(x)))(3.0) == 3.0
    x = torch.tensor(3.0, requires_grad=True)
    (x * constant(x)).backward()
    assert x.grad is not None
    assert (x.grad.item(), number(x)) == (3.0, 3.0)
    array = np.ones(2)
    assert constant(array) is array


@pytest.mark.parametrize(("wide", "bits"), [(False, 32), (True, 64)])
def test_jax_counts_and_computes_in_the_bits_it_has(wide, bits):
    with jax.enable_x64(wide):
        xp, whole, short = numeric(jax.numpy.ones(2, int), jax.numpy.ones(2, jax.numpy.bfloat16))
        assert (whole.dtype, short.dtype) == (f"float{bits}", "float32")
        assert count_dtype(xp) == integer(xp, [1, 2], like=whole).dtype == f"int{bits}"
        assert integer(xp, jax.numpy.ones(2, "int8"), like=whole).dtype == f"int{bits}"


def test_a_traced_mask_of_0_and_1_is_boolean():
    xp, like = numeric(jax.numpy.ones(2))
    mask = jax.jit(lambda m: boolean(xp, m, like=like))(jax.numpy.asarray([0, 1]))
    assert mask.tolist() == [False, True]


def test_nothing_is_broadcast():
    same_shape(a=np.ones(2), b=np.ones(2))
    with pytest.raises(ShapeError, match=r"shapes differ: a \(2,\), b \(1,\); expected one shape"):
        same_shape(a=np.ones(2), b=np.ones(1))
    with pytest.raises(TypeError, match="ndarray beside Tensor; expected arrays of one library"):
        boolean(numeric(torch.ones(2))[0], np.ones(2), like=torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_list_beside_a_16_bit_tensor_keeps_its_digits(dtype):
    _, tensor, row = numeric(torch.tensor([-100.0], dtype=dtype), [-100.3])
    assert tensor.dtype == row.dtype == torch.float32
    assert float(tensor - row) == pytest.approx(0.3, abs=1e-5)
