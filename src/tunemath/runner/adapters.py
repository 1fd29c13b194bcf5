"""Bottleneck adapters, ``h + s·W_up σ(W_down h)``, in a decoder's layers: PEFT has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

from tunemath.errors import ModelError
from tunemath.runner.blueprints import blueprint_of
from tunemath.runner.tuned import TunedModel
from tunemath.space import AdapterSpace, blocks_of

__all__ = ["Bottleneck", "BottleneckModel"]


class Bottleneck(nn.Module):
    """One adapter. It starts with ``W_up = 0``, so that it changes nothing, not by one bit.

    A serial one reads its host's output, a parallel one its host's input; both add to the output.
    It computes in its own precision and answers in its host's.
    """

    def __init__(self, width: int, space: AdapterSpace) -> None:
        super().__init__()
        self.down = nn.Linear(width, space.bottleneck, bias=space.bias)
        self.up = nn.Linear(space.bottleneck, width, bias=space.bias)
        self.activation = ACT2FN[space.activation]
        self.scale = space.scale
        self.parallel = space.style == "parallel"
        self.active = True
        nn.init.zeros_(self.up.weight)
        if space.bias:
            nn.init.zeros_(self.down.bias)
            nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return ``s·W_up σ(W_down h)`` of states h (…, D)."""
        inner = self.activation(self.down(hidden.to(self.down.weight.dtype)))
        return (self.scale * self.up(inner)).to(hidden.dtype)

    def join(self, host: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Add to a host's output, of which the first part is the states; a forward hook."""
        if not self.active:
            return output
        states, *rest = output if isinstance(output, tuple) else (output,)
        if self.parallel:
            states = states + self(args[0] if args else kwargs["hidden_states"])
        else:
            states = states + self(states)
        return (states, *rest) if isinstance(output, tuple) else states


class BottleneckModel(TunedModel):
    """A frozen decoder with an adapter in each layer, or two."""

    space: AdapterSpace

    def __init__(self, base: Any, space: AdapterSpace) -> None:
        super().__init__(base, space)
        if space.style == "compacter":
            raise ModelError(
                "space.style compacter is counted but not trained here; "
                "use pfeiffer, houlsby or parallel"
            )
        blueprint = blueprint_of(base)
        blocks = blocks_of(blueprint)
        base.requires_grad_(False)
        self._adapters: list[Bottleneck] = []
        for block in blocks:
            if space.style == "houlsby":
                self._attach(block.attention, blueprint.hidden)
            self._attach(block.feed_forward, blueprint.hidden)

    def _attach(self, name: str, width: int) -> None:
        host: nn.Module = self.base_model.get_submodule(name)
        adapter = Bottleneck(width, self.space).to(next(host.parameters()).device)
        host.add_module("adapter", adapter)
        host.register_forward_hook(adapter.join, with_kwargs=True)
        self._adapters.append(adapter)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Let the model be the base inside."""
        before = [adapter.active for adapter in self._adapters]
        for adapter in self._adapters:
            adapter.active = False
        try:
            yield
        finally:
            for adapter, active in zip(self._adapters, before, strict=True):
                adapter.active = active
