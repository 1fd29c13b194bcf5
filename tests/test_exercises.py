"""The answers that the published exercises give; the figures are theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tolerance
from tunemath.errors import MaskError
from tunemath.objective import dpo_loss, dpo_margin, kl_divergence, masked_mean
from tunemath.space import (
    adapter_parameter_count,
    lora_delta,
    lora_parameter_count,
    low_rank,
    prefix_parameter_count,
)

LIBRARIES = pytest.mark.parametrize("make", [list, np.array, torch.tensor])


@LIBRARIES
def test_1_answer_only_loss(make):
    losses = make([0.1, 0.2, 1.0, 0.8])
    assert float(masked_mean(losses, make([0, 0, 1, 1]))) == pytest.approx(0.9)
    assert float(masked_mean(losses, make([1, 1, 1, 1]))) == pytest.approx(0.525)
    with pytest.raises(MaskError):
        masked_mean(losses, make([0, 0, 0, 0]))


@LIBRARIES
def test_2_kl_movement(make):
    base, tuned = [0.6, 0.3, 0.1], [0.4, 0.4, 0.2]
    if make is torch.tensor:
        base, tuned = torch.tensor(base).double(), torch.tensor(tuned).double()
    forward = float(kl_divergence(tuned, base))
    assert forward == pytest.approx(0.091516, abs=5e-7)
    assert float(kl_divergence(base, tuned)) == pytest.approx(0.087, abs=1e-3)


def test_3_lora_count():
    assert lora_parameter_count(4096, 4096, 8) == 65_536


@LIBRARIES
def test_4_lora_shape(make):
    a, b = [[1.0] * 10] * 3, [[2.0] * 3] * 12
    delta = lora_delta(make(a), make(b))
    assert tuple(delta.shape) == (12, 10)
    assert float(delta[0, 0]) == 6.0


@LIBRARIES
def test_5_low_rank(make):
    matrix = np.arange(25.0).reshape(5, 5).tolist()
    fit = low_rank(make(matrix), 2)
    dtype = torch.float32 if make is torch.tensor else np.float64
    rounding = 2 * tolerance.decomposition(matrix, dtype) / np.linalg.norm(matrix)
    assert float(fit.relative_error) < rounding
    assert float(low_rank(make(matrix), 1).relative_error) > 0.01


def test_6_adapter_count():
    assert adapter_parameter_count(1024, 32) == 65_536


def test_7_prefix_count():
    assert prefix_parameter_count(24, 16, 16, 64) == 786_432


@LIBRARIES
def test_8_dpo(make):
    pair = [make([value]) for value in (-4.0, -6.0, -5.0, -5.5)]
    assert float(dpo_margin(*pair)[0]) == pytest.approx(1.5)
    assert float(dpo_loss(*pair, beta=0.2)[0]) == pytest.approx(0.5544, abs=5e-5)
    assert float(dpo_loss(-4, -6, -5, -5.5, beta=0.2)) == pytest.approx(0.5544, abs=5e-5)
