"""The fused objectives inside autograd's machinery: interleaved, threaded, checkpointed, hooked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fused_calls import every, leaves, trainable
from fused_cases import poisoned as poisoned
from torch.utils.checkpoint import checkpoint


def gradients(function, hidden, head, targets, wanted):
    return torch.autograd.grad(function(hidden, head, targets).sum(), wanted)


def wanted_of(hidden, head):
    return [one for one in (hidden, head) if one.requires_grad]


@every
@trainable
def test_backward_passes_may_interleave(function, trained):
    one, two = (leaves(trained=trained, rows=rows) for rows in (20, 33))
    expected = [gradients(function, *some, wanted_of(*some[:2])) for some in (one, two)]
    values = [function(*some).sum() for some in (one, two)]
    found = [
        torch.autograd.grad(value, wanted_of(*some[:2]))
        for value, some in zip(values[::-1], (two, one), strict=True)
    ]
    for ours, theirs in zip(found[::-1], expected, strict=True):
        assert all(map(torch.equal, ours, theirs))


@every
@trainable
def test_threads_do_not_disturb_each_other(function, trained):
    batches = [leaves(trained=trained, rows=rows) for rows in (20, 33, 7, 50)]
    expected = [gradients(function, *some, wanted_of(*some[:2])) for some in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda some: gradients(function, *some, wanted_of(*some[:2])), batches)
        )
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


@every
@trainable
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(function, trained, reentrant):
    hidden, head, targets = leaves(trained=trained, rows=20)
    wanted = wanted_of(hidden, head)
    expected = gradients(function, 2.0 * hidden, head, targets, wanted)
    value = checkpoint(
        lambda h, w: function(2.0 * h, w, targets), hidden, head, use_reentrant=reentrant
    )
    value.sum().backward()
    for leaf, gradient in zip(wanted, expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient)


@every
@trainable
def test_saved_tensors_may_be_moved_away_and_back(function, trained):
    hidden, head, targets = leaves(trained=trained, rows=20)
    wanted = wanted_of(hidden, head)
    expected = gradients(function, hidden, head, targets, wanted)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: one.numpy(), torch.from_numpy):
        value = function(hidden, head, targets).sum()
    assert all(map(torch.equal, torch.autograd.grad(value, wanted), expected))


@every
@trainable
def test_gradients_accumulate(function, trained):
    hidden, head, targets = leaves(trained=trained, rows=20)
    wanted = wanted_of(hidden, head)
    expected = gradients(function, hidden, head, targets, wanted)
    for _ in range(3):
        (0.5 * function(hidden, head, targets).sum()).backward()
    for leaf, gradient in zip(wanted, expected, strict=True):
        torch.testing.assert_close(leaf.grad, 1.5 * gradient)


@every
@trainable
def test_one_of_several_inputs_alone(function, trained):
    """Of a graph in which both train, the gradient of one is what it is with the other."""
    hidden, head, targets = leaves(trained=trained, rows=20)
    wanted = wanted_of(hidden, head)
    expected = gradients(function, hidden, head, targets, wanted)
    for leaf, gradient in zip(wanted, expected, strict=True):
        (alone,) = gradients(function, hidden, head, targets, [leaf])
        assert torch.equal(alone, gradient)
