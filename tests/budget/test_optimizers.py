"""What optimizers hold, beside what they really allocate."""

from __future__ import annotations

import pytest
import torch
from transformers.optimization import Adafactor

from tunemath.budget import OPTIMIZERS, state_bytes, step_bytes

SHAPES = [(64, 96), (96,), (3, 8, 8), (1,)]
TENSORS = [(shape, 2) for shape in SHAPES]


def live_bytes(make, shapes, dtype=torch.float32):
    ones = [torch.ones(shape, dtype=dtype) for shape in shapes for _ in range(2)]
    parameters = [torch.nn.Parameter(each) for each in ones]
    optimizer = make(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.1)),
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1)),
        ("adafactor",
         lambda p: Adafactor(p, lr=0.1, scale_parameter=False, relative_step=False)),
    ],
)  # fmt: skip
def test_states_are_the_bytes_of_live_tensors(name, make):
    assert state_bytes(name, TENSORS) == live_bytes(make, SHAPES)
    assert state_bytes(name, TENSORS, width=2) == live_bytes(make, SHAPES, torch.bfloat16)


def test_muon_holds_one_moment_of_matrices_and_adamw_two_of_the_rest():
    matrices = [(64, 96), (8, 8)]
    live = live_bytes(lambda p: torch.optim.Muon(p, lr=0.1), matrices)
    assert state_bytes("muon", [(shape, 2) for shape in matrices]) == live
    for rest in ((96,), (3, 8, 4)):  # Muon refuses all but matrices
        assert state_bytes("muon", [(rest, 1)]) == state_bytes("adamw", [(rest, 1)]) == 8 * 96 + 4


def test_eight_bit_states_by_hand():
    # 64 · 96 = 6144 numbers: a byte each and 24 float32 scales, twice; 4095 are too few
    assert state_bytes("adamw_8bit", [((64, 96), 1)]) == 2 * (6144 + 4 * 24)
    assert state_bytes("adamw_8bit", [((4095,), 1)]) == 8 * 4095
    assert state_bytes("lion_8bit", [((4097,), 3)]) == 3 * (4097 + 4 * 17)
    assert state_bytes("lion", [((4097,), 1)]) == 4 * 4097
    assert state_bytes("lion_8bit", [((4096,), 1)]) == 4096 + 4 * 16
    assert state_bytes("paged_adamw", [((10, 10), 1)]) == 800
    assert state_bytes("paged_adamw_8bit", [((64, 96), 1)]) == 2 * (6144 + 4 * 24)


def test_a_step_needs_room_for_the_largest_tensor_or_for_all():
    assert step_bytes("adamw", TENSORS) == 2 * 4 * 64 * 96
    every = 4 * 2 * (64 * 96 + 96 + 3 * 64 + 1)
    assert step_bytes("adamw", TENSORS, device="cuda") == every
    assert step_bytes("sgd", TENSORS) == 0
    assert step_bytes("muon", TENSORS) == 4 * 4 * 64 * 96
    for device in ("cpu", "cuda"):  # of the others none steps all together
        assert step_bytes("adafactor", TENSORS, device=device) == 2 * 4 * 64 * 96
        assert step_bytes("lion", TENSORS, device=device) == 0
    assert step_bytes("adamw", []) == 0


def test_an_unknown_optimizer_is_named_with_a_near_one():
    with pytest.raises(ValueError, match="did you mean adamw"):
        state_bytes("adamww", [])
    assert all(state_bytes(name, TENSORS) >= 0 for name in OPTIMIZERS)
