"""Data and contenders of the comparisons of benchmarks/objective.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunemath.objective.fused import linear_cross_entropy, linear_kl, linear_token_log_probs

IGNORED = -100


@dataclass(frozen=True)
class Shape:
    """N positions of D, a vocabulary of V, and the share of positions that count."""

    N: int
    D: int
    V: int
    share: float
    dtype: torch.dtype = torch.float32


@dataclass
class Batch:
    """Hidden states whose targets are predicted with some 2 nats, as a language model's are."""

    h: Tensor
    W: Tensor
    y: Tensor
    mask: Tensor

    @property
    def labels(self) -> Tensor:
        return self.y.masked_fill(~self.mask, IGNORED)


def batch(shape: Shape, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(shape.V, shape.D, generator=g) / math.sqrt(shape.D)
    y = torch.randint(shape.V, (shape.N,), generator=g)
    noise = torch.randn(shape.N, shape.D, generator=g) * 3.0
    few = slice(0, min(64, shape.N))
    low, high = 0.0, 60.0
    for _ in range(20):
        peak = (low + high) / 2
        nll = F.cross_entropy((peak * W[y[few]] + noise[few]) @ W.T, y[few])
        low, high = (peak, high) if nll > 2.0 else (low, peak)
    h = peak * W[y] + noise
    mask = torch.zeros(shape.N, dtype=torch.bool)
    mask[torch.randperm(shape.N, generator=g)[: round(shape.share * shape.N)]] = True
    return Batch(h.to(shape.dtype), W.to(shape.dtype), y, mask)


def with_gradient(
    loss: Callable[[Tensor, Tensor], Tensor], b: Batch, trained: bool
) -> Callable[[], tuple[Tensor, Tensor, Tensor | None]]:
    """Return a whole step: the loss, and its gradient by hidden states (and head)."""

    def run() -> tuple[Tensor, Tensor, Tensor | None]:
        h = b.h.detach().requires_grad_()
        W = b.W.detach().requires_grad_(trained)
        value = loss(h, W)
        value.backward()
        assert h.grad is not None
        return value.detach(), h.grad, W.grad

    return run


def mean_losses(b: Batch) -> dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
    """Mean cross-entropy over the positions that count: name, setting, function of (h, W)."""
    n = int(b.mask.sum())
    some, labels = b.mask.nonzero()[:, 0], b.labels
    y = b.y[some]

    def ours(h: Tensor, W: Tensor) -> Tensor:
        total, weight = linear_cross_entropy(h, W, b.y, b.mask)
        return total / weight

    def torch_chunked(h: Tensor, W: Tensor) -> Tensor:
        options = torch.nn.LinearCrossEntropyOptions()
        return F.linear_cross_entropy(h, W, labels, options=options)

    def torch_best(
        rows: int, dtype: torch.dtype | None = None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        options = torch.nn.LinearCrossEntropyOptions(
            batch_chunk_size=rows, chunking_method=None, acc_policy="accurate", acc_dtype=dtype
        )
        return lambda h, W: F.linear_cross_entropy(h[some], W, y, options=options)

    def naive(h: Tensor, W: Tensor) -> Tensor:
        return F.cross_entropy(h @ W.T, labels)

    def naive_best(h: Tensor, W: Tensor) -> Tensor:
        return F.cross_entropy(h[some] @ W.T, y)

    def cce(h: Tensor, W: Tensor) -> Tensor:
        from cut_cross_entropy import linear_cross_entropy as cut

        return cut(h, W, labels, impl="torch_compile")

    def trl(h: Tensor, W: Tensor) -> Tensor:
        return trl_log_probs(h, W, b.y, True)[b.mask].mean().neg()

    def trl_best(h: Tensor, W: Tensor) -> Tensor:
        return trl_log_probs(h[some], W, y, False).mean().neg()

    upcast = ("rows compacted, 512 a chunk, acc_dtype float32", torch_best(512, torch.float32))
    return {
        "tunemath": ("default", ours),
        "torch chunked": ("default", torch_chunked),
        **({} if b.W.dtype == torch.float32 else {"torch chunked, float32": upcast}),
        **{
            f"torch chunked, {r} rows": (f"rows compacted, {r} a chunk", torch_best(r))
            for r in (128, 256, 512)
        },
        "TRL": ("as shipped on a CPU", trl),
        "TRL compacted": ("rows compacted, log-probs only", trl_best),
        "naive": ("all logits", naive),
        "naive compacted": ("rows compacted", naive_best),
        "cut-cross-entropy": ("torch_compile", cce),
        "floor": (f"{n} rows", lambda h, W: h),
    }


def trl_log_probs(h: Tensor, W: Tensor, y: Tensor, shipped: bool) -> Tensor:
    """TRL's fused head: as its SFT trainer asks for it, or the log-probabilities alone."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer import utils

    outputs = ("entropy", "is_top1") if shipped else ()
    chunk = utils._CHUNKED_LOGPROB_CHUNK_SIZE
    return ChunkedLogProbFunction.apply(h, W, None, y, 1.0, chunk, None, 1.0, outputs)[0]


def products(b: Batch, trained: bool, rows: int | None = None) -> Callable[[], None]:
    """The bare products of the rows that count, into buffers made beforehand."""
    h = b.h[b.mask][:rows]
    z = torch.empty(len(h), len(b.W), dtype=h.dtype)
    dh, dW = torch.empty_like(h), torch.empty_like(b.W) if trained else None

    def run() -> None:
        torch.mm(h, b.W.t(), out=z)
        torch.mm(z, b.W, out=dh)
        if dW is not None:
            torch.mm(z.t(), h, out=dW)

    return run


def log_prob_contenders(b: Batch, upstream: Tensor) -> dict[str, tuple[str, Callable[..., Tensor]]]:
    """Log-probabilities of all positions that count, weighted by ``upstream``, rows compacted."""
    some = b.mask.nonzero()[:, 0]
    y = b.y[some]

    def torch_none(rows: int | None) -> Callable[[Tensor, Tensor], Tensor]:
        options = (
            torch.nn.LinearCrossEntropyOptions()
            if rows is None
            else torch.nn.LinearCrossEntropyOptions(
                batch_chunk_size=rows, chunking_method=None, acc_policy="accurate"
            )
        )

        def run(h: Tensor, W: Tensor) -> Tensor:
            value = F.linear_cross_entropy(h[some], W, y, reduction="none", options=options)
            return (-value * upstream).sum()

        return run

    def ours(h: Tensor, W: Tensor) -> Tensor:
        return (linear_token_log_probs(h, W, b.y, b.mask)[b.mask] * upstream).sum()

    def autograd(h: Tensor, W: Tensor) -> Tensor:
        value = F.log_softmax(h[some] @ W.T, -1).gather(-1, y[:, None])[:, 0]
        return (value * upstream).sum()

    return {
        "tunemath": ("default", ours),
        "torch none": ("default, rows compacted", torch_none(None)),
        "torch none, 256 rows": ("rows compacted, 256 a chunk", torch_none(256)),
        "torch none, one chunk": ("rows compacted, one chunk", torch_none(len(y))),
        "TRL": ("as shipped on a CPU",
                lambda h, W: (trl_log_probs(h, W, b.y, True)[b.mask] * upstream).sum()),
        "TRL compacted": ("rows compacted, log-probs only",
                          lambda h, W: (trl_log_probs(h[some], W, y, False) * upstream).sum()),
        "autograd": ("rows compacted, all logits", autograd),
    }  # fmt: skip


@dataclass
class Two:
    """States of a tuned and a base model some nats apart."""

    tuned: Tensor
    base: Tensor
    W: Tensor
    base_W: Tensor | None


def two_models(shape: Shape, size: float, *, heads: bool, seed: int = 1) -> Two:
    b = batch(shape, seed)
    g = torch.Generator().manual_seed(seed + 1)
    base = b.h + size * torch.randn(b.h.shape, generator=g)
    other = None
    if heads:
        other = b.W + size / 4 * torch.randn(b.W.shape, generator=g) / math.sqrt(shape.D)
    return Two(b.h, base, b.W, other)


def kl_contenders(t: Two) -> dict[str, tuple[str, Callable[[], Tensor]]]:
    """KL(tuned ‖ base) of every position."""
    base_W = t.W if t.base_W is None else t.base_W

    def naive() -> Tensor:
        p = F.log_softmax(t.tuned @ t.W.T, -1)
        q = F.log_softmax(t.base @ base_W.T, -1)
        return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)

    def trl() -> Tensor:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        return ChunkedDivergenceFunction.apply(t.tuned, t.W, None, t.base, base_W, None, 1.0)[0]

    def liger() -> Tensor:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        labels = torch.zeros(len(t.tuned), dtype=torch.int64)
        loss: Any = LigerFusedLinearJSDLoss(0.0, 1.0, beta=1.0, compiled=False)
        return loss(t.tuned, t.W, t.base, base_W, labels)

    return {
        "tunemath": ("default", lambda: linear_kl(t.tuned, t.base, t.W, t.base_W)),
        "TRL": ("default", trl),
        "Liger": ("chunked JSD at β = 1, eager (it forms the gradient too)", liger),
        "F.kl_div": ("all logits", naive),
    }


def frozen(run: Callable[[], Any]) -> Callable[[], Any]:
    def quiet() -> Any:
        with torch.no_grad():
            return run()

    return quiet
