from __future__ import annotations

import array_api_strict as strict
import numpy as np
import peft
import pytest
import torch

from tunemath.errors import ShapeError
from tunemath.space import lora_delta

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(3, 10)), RNG.normal(size=(12, 3))


@pytest.mark.parametrize("make", [np.asarray, torch.tensor, strict.asarray])
def test_every_library_gives_the_naive_loop(make):
    expected = np.zeros((12, 10))
    for i in range(12):
        for j in range(10):
            expected[i, j] = 0.5 * sum(B[i, k] * A[k, j] for k in range(3))
    np.testing.assert_allclose(np.asarray(lora_delta(make(A), make(B), 0.5)), expected, rtol=1e-12)


@pytest.mark.parametrize("rslora", [False, True])
def test_equals_pefts_delta_weight(rslora):
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["0"], init_lora_weights=False, use_rslora=rslora
    )
    layer = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(10, 12)), config).base_model
    lora = layer.model[0]
    a, b = lora.lora_A["default"].weight, lora.lora_B["default"].weight
    scale = 6 / 2 if rslora else 6 / 4
    torch.testing.assert_close(lora_delta(a, b, scale), lora.get_delta_weight("default"))


def test_gradcheck_and_stacks():
    a = torch.tensor(A, requires_grad=True)
    b = torch.tensor(B, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: lora_delta(a, b, 2.0), (a, b))
    stacked = lora_delta(np.stack([A, 2 * A]), np.stack([B, B]))
    np.testing.assert_allclose(stacked[1], 2 * (B @ A))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((12, 3), (3, 10), r"A \(12, 3\) and B \(3, 10\).*swapped"),
        ((10, 3), (12, 3), "A looks transposed"),
        ((3, 10), (3, 12), "B looks transposed"),
        ((3, 10), (12, 4), "the ranks differ: 3 in A, 4 in B"),
        ((10,), (12, 3), "each with two axes"),
    ],
)
def test_shapes_that_do_not_go_together(a, b, message):
    with pytest.raises(ShapeError, match=message):
        lora_delta(np.zeros(a), np.zeros(b))
