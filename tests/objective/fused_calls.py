"""Tensors of one size, and the four fused objectives called alike on them."""

from __future__ import annotations

import pytest
import torch
from fused_cases import losses, summed

from tunemath.objective.fused import Lora, linear_entropy, linear_kl

N, D, V = 300, 16, 5000
DRAW = torch.Generator().manual_seed(0)
HIDDEN = torch.randn(N, D, generator=DRAW)
BASE_HIDDEN = HIDDEN + 0.1 * torch.randn(N, D, generator=DRAW)
HEAD = torch.randn(V, D, generator=DRAW) / 4
BASE_HEAD = HEAD + 0.1 * torch.randn(V, D, generator=DRAW)
NEAR_HIDDEN, NEAR_HEAD = HIDDEN + 1e-4, HEAD * 1.0001
TARGETS = torch.randint(V, (N,), generator=DRAW)
LORA = Lora(torch.zeros(2, D), torch.zeros(V, 2))


def drawn(*shape):
    """Return the same float64 numbers whenever it is called."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def kl(hidden, head, targets, mask=None, **options):
    """Call linear_kl as the others are called; a head that trains has a base."""
    base_hidden = BASE_HIDDEN.to(hidden.dtype)[: len(hidden), : hidden.shape[1]]
    base_head = BASE_HEAD.to(head.dtype)[: head.shape[0], : head.shape[1]]
    return linear_kl(hidden, base_hidden, head, base_head, mask, **options)


def shared_kl(hidden, head, targets, mask=None, **options):
    return linear_kl(hidden, BASE_HIDDEN, head, None, mask, **options)


def near_kl(hidden, head, targets, mask=None, **options):
    """Call linear_kl with a base so near that its logits are not simply subtracted."""
    return linear_kl(hidden, NEAR_HIDDEN, head, NEAR_HEAD, mask, **options)


def entropy(hidden, head, targets, mask=None, **options):
    return linear_entropy(hidden, head, mask, **options)


FOUR = {"sum": summed, "log_probs": losses, "kl": kl, "entropy": entropy}
every = pytest.mark.parametrize("function", FOUR.values(), ids=FOUR)
trainable = pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])


def leaves(grad=True, trained=False, dtype=torch.float32, rows=N, vocab=V):
    """Return hidden states, head and targets of their own."""
    hidden = HIDDEN[:rows].to(dtype, copy=True).requires_grad_(grad)
    head = HEAD[:vocab].to(dtype, copy=True).requires_grad_(trained)
    return hidden, head, TARGETS[:rows] % vocab
