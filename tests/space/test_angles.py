from __future__ import annotations

import array_api_strict as strict
import numpy as np
import pytest
import scipy.linalg
import torch

import tolerance
from tunemath.errors import ShapeError
from tunemath.space import principal_angles, subspace_overlap

RNG = np.random.default_rng(0)
LIBRARIES = pytest.mark.parametrize("make", [np.asarray, torch.tensor, strict.asarray])


@LIBRARIES
@pytest.mark.parametrize(("p", "q"), [(3, 3), (5, 2), (2, 5), (1, 9)])
def test_the_angles_are_scipys(make, p, q):
    a, b = RNG.normal(size=(9, p)), RNG.normal(size=(9, q))
    expected = np.sort(scipy.linalg.subspace_angles(a, b))
    got = np.asarray(principal_angles(make(a), make(b)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=2 * tolerance.subspace(a, b))
    share = float(subspace_overlap(make(a), make(b)))
    assert share == pytest.approx(float(np.mean(np.cos(expected) ** 2)), rel=1e-12)


@pytest.mark.parametrize("angle", [1e-15, 1e-9, 1e-4, 0.5, np.pi / 4, 1.5, np.pi / 2])
def test_an_angle_is_found_to_its_last_digits(angle):
    """Planted: two of three directions are shared, one is turned; a rotation changes nothing."""
    q = np.linalg.qr(RNG.normal(size=(40, 40)))[0]
    turned = np.cos(angle) * q[:, 2] + np.sin(angle) * q[:, 3]
    mixed = np.stack([q[:, 0], q[:, 1], turned], axis=1) @ RNG.normal(size=(3, 3))
    found = principal_angles(q[:, :3], mixed)
    atol = tolerance.subspace(q[:, :3], mixed)
    np.testing.assert_allclose(found, [0, 0, angle], rtol=0, atol=atol)


def test_what_random_subspaces_share():
    shares = [
        subspace_overlap(RNG.normal(size=(60, 6)), RNG.normal(size=(60, 3))) for _ in range(300)
    ]
    assert np.mean(shares) == pytest.approx(6 / 60, rel=0.05)


def test_batches_dtypes_and_gradients():
    a, b = RNG.normal(size=(2, 7, 3)), RNG.normal(size=(2, 7, 2))
    batched = principal_angles(a, b)
    np.testing.assert_array_equal(
        batched, [principal_angles(x, y) for x, y in zip(a, b, strict=True)]
    )
    assert principal_angles(a.astype(np.float32), b.astype(np.float32)).dtype == np.float32
    x, y = (torch.tensor(each, requires_grad=True) for each in (a, b))
    assert torch.autograd.gradcheck(principal_angles, (x, y))
    assert torch.autograd.gradcheck(subspace_overlap, (x, y))


def test_what_spans_no_subspace_is_refused():
    with pytest.raises(ShapeError, match=r"no subspaces of one space; expected \(n, p\)"):
        principal_angles(np.ones((3, 1)), np.ones((4, 1)))
    with pytest.raises(ShapeError, match="from 1 to n columns"):
        principal_angles(np.eye(3), np.ones((3, 4)))
    with pytest.raises(ShapeError, match="columns of B are not linearly independent"):
        principal_angles(np.eye(3), np.ones((3, 2)))
    with pytest.raises(ShapeError, match="columns of A are not linearly independent"):
        subspace_overlap(np.zeros((3, 1)), np.ones((3, 1)))
