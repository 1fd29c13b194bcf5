"""What enters a model's output layer, and what we make of it without the logits.

A causal model ends in ``z = cap·tanh(x / cap)`` with ``x = scale·(W h + s·B A h + b)``, or a part
of that; from h and the head our objectives need no logits. Families name scale and cap alike and
mean different things (``logits_scaling`` divides the logits, or multiplies them, or divides h), so
no name is read: known numbers go through the model in place of the head's products, and its logits
say what was done to them. A model that does anything else keeps its logits.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tunemath.objective import cross_entropy, kl_from_logits, token_log_probs
from tunemath.objective.fused import (
    Lora,
    linear_cross_entropy,
    linear_kl,
    linear_token_log_probs,
)
from tunemath.runner.quiet import quiet_libraries

__all__ = ["Head", "States", "kl", "output_states"]

_log = logging.getLogger(__name__)

_ROWS = 8  # of logits at once: their temporaries stay in a CPU's cache
_TOKENS = 8
_TINY, _HUGE, _WIDE = 2.0**-30, 2.0**40, 40.0


@dataclass(frozen=True)
class Head:
    """The output layer: W (V, D), b (V,), LoRA factors, and what happens to their logits."""

    weight: Tensor
    bias: Tensor | None = None
    lora: Lora | None = None
    scale: float = 1.0
    soft_cap: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What the ``linear_`` objectives call these."""
        return {
            "bias": self.bias,
            "lora": self.lora,
            "scale": self.scale,
            "soft_cap": self.soft_cap,
        }

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (…, V) of hidden states (…, D), in the weight's precision."""
        x = nn.functional.linear(hidden, self.weight, self.bias)
        if self.lora is not None:
            low = hidden.to(self.lora.A.dtype) @ self.lora.A.T
            x = x + self.lora.scale * (low @ self.lora.B.T)
        return self.finish(x)

    def finish(self, products: Tensor) -> Tensor:
        """Return the logits of the products W h + s·B A h + b."""
        x = products * self.scale
        return x if self.soft_cap is None else self.soft_cap * torch.tanh(x / self.soft_cap)


@dataclass(frozen=True)
class States:
    """What enters the output layer, (…, D); the logits themselves (…, V) where ``head`` is None."""

    values: Tensor
    head: Head | None

    def __getitem__(self, index: Any) -> States:
        return States(self.values[index], self.head)

    def logits(self) -> Tensor:
        """Return the logits (…, V)."""
        return self.values if self.head is None else self.head.logits(self.values)

    def cross_entropy(self, targets: Tensor, mask: Tensor) -> Tensor:
        """Return −log p of the targets (…), in nats, summed where the mask (…) is on."""
        if self.head is None:
            return cross_entropy(self.values[mask], targets[mask]).sum()
        total, _ = linear_cross_entropy(
            self.values, self.head.weight, targets, mask, **self.head.options
        )
        return total

    def log_probs(self, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return log p of the targets (…), in nats, and 0 where the mask (…) is off."""
        if self.head is None:
            chosen = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask
            found = token_log_probs(self.values[chosen], targets[chosen])
            return found.new_zeros(targets.shape).masked_scatter(chosen, found)
        return linear_token_log_probs(
            self.values, self.head.weight, targets, mask, **self.head.options
        )

    def preferred(self) -> Tensor:
        """Return the most probable token at each of the positions (N, D), some at a time."""
        blocks = self.values.split(16 * _ROWS)
        return torch.cat([States(block, self.head).logits().argmax(-1) for block in blocks])


def kl(tuned: States, base: States) -> Tensor:
    """Return KL(tuned ‖ base) in nats at positions (N, D), (N,).

    With one head for both, no digits are lost beyond those of the hidden states.
    """
    head, other = tuned.head, base.head
    if head is None or other is None or other.lora is not None:
        blocks = (
            kl_from_logits(tuned[some].logits(), base[some].logits())
            for some in torch.arange(len(tuned.values)).split(_ROWS)
        )
        return torch.cat(list(blocks))
    if head.lora is None and head.weight is other.weight and head.bias is other.bias:
        return linear_kl(tuned.values, base.values, head.weight, **head.options)
    return linear_kl(
        tuned.values, base.values, head.weight, other.weight, base_bias=other.bias, **head.options
    )


def output_states(model: Any, *, keep: Tensor | None = None, **arguments: Any) -> States:
    """Run the model up to its output layer, in the adapter's present state.

    ``keep`` are the columns wanted, all when None; ``arguments`` are those of the model's forward.
    Returns states (B, T or len(keep), …). A model whose logits are not understood computes them
    (a warning says why), and the states are these.
    """
    inner = _innermost(model)
    some = {}
    if keep is not None and "logits_to_keep" in inspect.signature(inner.forward).parameters:
        some = {"logits_to_keep": keep}
    head = _read_head(inner)
    if head is None:
        values = model(**arguments, **some).logits
    else:
        caught: list[Tensor] = []

        def catch(hidden: Tensor) -> Tensor:
            caught.append(hidden)
            return hidden[..., :0]

        with _answering(inner.get_output_embeddings(), catch):
            model(**arguments, **some)
        (values,) = caught
    return States(values if keep is None or some else values[:, keep], head)


def _innermost(model: Any) -> Any:
    """Return the transformers model inside data parallelism and PEFT."""
    if isinstance(model, DistributedDataParallel):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _answering(module: nn.Module, answer: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a module return ``answer(input)`` inside, without computing."""
    module.forward = lambda hidden, *_, **__: answer(hidden)
    try:
        yield
    finally:
        del module.forward


def _read_head(inner: Any) -> Head | None:
    """Return the model's head, or None with a warning where it isn't understood."""
    module = inner.get_output_embeddings()
    head = _parts(module)
    if isinstance(head, Head):
        if inner not in _FINISHES:
            _FINISHES[inner] = _measure(inner, module, head)
        finish = _FINISHES[inner]
        if not isinstance(finish, str):
            return replace(head, scale=finish[0], soft_cap=finish[1])
        head = finish
    _warn(f"{type(inner).__name__} computes all its logits: {head}")
    return None


@functools.cache
def _warn(message: str) -> None:
    _log.warning(message)


def _parts(module: Any) -> Head | str:
    """Return W, b and LoRA of an output layer as it is now, or why that can't be."""
    outer = module
    if isinstance(module, ModulesToSaveWrapper):
        active = None if module.disable_adapters else module.active_adapters
        module = module.modules_to_save[active[0]] if active else module.original_module
    base = module.base_layer if type(module) is LoraLinear else module
    if type(base) is not nn.Linear:
        return f"its output layer is {type(module).__name__}, not a plain linear layer"
    if any("forward" in vars(layer) for layer in (outer, module, base)):
        return "the forward of its output layer was replaced"
    head = Head(base.weight, base.bias)
    if not isinstance(module, LoraLinear):
        return head
    if module.disable_adapters or module.merged:
        undone = module.disable_adapters and module.merged  # PEFT unmerges in its own forward
        return "the adapter of its output layer is merged and off" if undone else head
    return _with_lora(head, module)


def _with_lora(head: Head, module: LoraLinear) -> Head | str:
    """Return the head with its active adapter."""
    names: list[str] = [name for name in module.active_adapters if name in module.lora_A]
    if not names:
        return head
    if len(names) > 1:
        return f"its output layer has {len(names)} active adapters"
    (name,) = names
    A: Any = module.lora_A[name]
    B: Any = module.lora_B[name]
    dropout = getattr(module.lora_dropout[name], "p", 0.0)
    if name in module.lora_variant or B.bias is not None:
        return "the adapter of its output layer is not plain LoRA"
    if module.training and dropout > 0:
        return f"the adapter of its output layer has a dropout of {dropout}"
    return replace(head, lora=Lora(A.weight, B.weight, module.scaling[name]))


_FINISHES: WeakKeyDictionary[nn.Module, tuple[float, float | None] | str] = WeakKeyDictionary()
"""Scale and soft-cap of each model, or why it has no such thing."""


@torch.no_grad()
def _measure(inner: Any, module: nn.Module, head: Head) -> tuple[float, float | None] | str:
    """Return what a model does to its head's products: scale and soft-cap, or what is wrong.

    Near 0 the logits are scale·x; far out they are the cap, if there is one; between they have to
    be what these two make of x, at every token. The products of a few states are compared too.
    """
    device, vocab = head.weight.device, len(head.weight)
    x = torch.arange(_TOKENS * vocab, dtype=torch.float64, device=device).sin_().mul_(_WIDE)
    x = x.view(1, _TOKENS, vocab)
    x[:, 0], x[:, 1] = _TINY, _HUGE
    same: list[bool] = []
    multiply = module.forward

    def put(hidden: Tensor) -> Tensor:
        own = multiply(hidden)
        same.append(_close(head.logits(hidden).to(own.dtype), own))
        return x

    ids = torch.arange(_TOKENS, device=device)[None] % vocab
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), quiet_libraries(), _answering(module, put):
            z = inner(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    except Exception as error:
        return f"trying it failed ({type(error).__name__}: {error})"
    if same != [True]:
        return "it does not multiply the weight of its output layer, once"
    scale, most = float(z[0, 0, 0]) / _TINY, float(z[0, 1, 0])
    if z.shape != x.shape or not scale > 0 or not most > 0:
        return "it changes the products of its output layer in a way that is not known here"
    cap = most if most < scale * _HUGE / 2 else None
    expected = Head(head.weight, scale=scale, soft_cap=cap).finish(x)
    if not torch.allclose(z.double(), expected, rtol=1e-5, atol=1e-6):
        return "it changes the products of its output layer in a way that is not known here"
    return scale, cap


def _close(found: Tensor, expected: Tensor) -> bool:
    """Compare to half the digits of the dtype, measured on the largest number."""
    allowed = torch.finfo(expected.dtype).eps ** 0.5 * float(expected.abs().max())
    return torch.allclose(found, expected, rtol=0.0, atol=allowed, equal_nan=True)
