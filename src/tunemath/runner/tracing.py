"""What a model's passes hold, traced without its weights: for families without a closed form.

The model is built and run under fake tensors, which have shapes and no memory, while every storage
is counted from its birth to its end. What a kernel needs inside itself is not seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock
from weakref import finalize

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import masking_utils
from transformers.integrations import moe

from tunemath.budget import Curves, Passes
from tunemath.errors import ModelError
from tunemath.runner.blueprints import build_from_config
from tunemath.runner.cache import keep, recall
from tunemath.runner.models import attach_adapter
from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.unfrozen import UnfrozenModel
from tunemath.space import UpdateSpace
from tunemath.storage import canonical_json, hash_bytes

__all__ = ["Storages", "trace_curves", "trace_passes"]


class Storages(TorchDispatchMode):
    """Counts the bytes of every tensor made inside, while they are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.gradients = self.gradients_at_peak = 0
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                self._see(one.untyped_storage())
        return result

    def own(self, model: nn.Module) -> None:
        """Count what a model holds already."""
        for tensor in (*model.parameters(), *model.buffers()):
            self._see(tensor.untyped_storage())

    def reset_peak(self) -> None:
        """Start a new peak from what is alive now."""
        self.peak, self.gradients_at_peak = self.now, self.gradients

    def watch(self, model: nn.Module) -> None:
        """Count the gradients of a model's parameters as they become whole."""

        def arrived(parameter: Tensor) -> None:
            self.gradients += 0 if parameter.grad is None else parameter.grad.nbytes

        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(arrived)

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        finalize(storage, self._gone, size)
        self.now += size
        if self.now > self.peak:
            self.peak, self.gradients_at_peak = self.now, self.gradients

    def _gone(self, size: int) -> None:
        self.now -= size


def trace_curves(
    config: Mapping[str, Any],
    space: UpdateSpace,
    rows: int,
    tokens: int,
    *,
    checkpointing: bool = False,
    attention: str = "sdpa",
    cache: Path | None = None,
) -> Curves:
    """Return what the passes of a config.json's model with an update hold, by rows and length.

    They are traced at B rows of T tokens, and at two smaller sizes; the result is kept in
    ``cache``, tunemath's own folder unless given. float32 on a CPU. Raises `ModelError` where the
    model can't be built or run without its weights.
    """
    about = [1, transformers.__version__, torch.__version__, dict(config)]
    about += [space.model_dump(mode="json"), rows, tokens, checkpointing, attention]
    key = hash_bytes(canonical_json(about))
    with suppress(ValueError, TypeError):  # none, or a damaged one
        points = json.loads(recall("traces", key, cache) or "")
        return Curves(tuple((tuple(at), Passes(**passes)) for at, passes in points))

    def make() -> Any:
        model = build_from_config(config, None, "cpu")
        model.set_attn_implementation(attention)
        return attach_adapter(model, space, seed=0)

    half = max(1, tokens // 2)
    sizes = ((rows, max(tokens, 2 * half)), (rows, half), (2 * rows, half))
    found = tuple((size, trace_passes(make, *size, checkpointing=checkpointing)) for size in sizes)
    text = json.dumps([[list(size), asdict(passes)] for size, passes in found])
    keep("traces", key, text, cache)
    return Curves(found)


def trace_passes(
    make: Callable[[], Any], rows: int, tokens: int, *, checkpointing: bool = False
) -> Passes:
    """Return what the passes of a causal model's body hold with B rows of T tokens.

    ``make`` builds the model with its update; it is called under fake tensors.
    """
    try:
        with quiet_libraries(), FakeTensorMode(), _fit_for_fakes():
            return _traced(make(), rows, tokens, checkpointing)
    except ModelError:
        raise
    except Exception as error:  # a family's code may ask for numbers, which fake tensors lack
        raise ModelError(
            "this model can't be traced without its weights: "
            f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        ) from error


@contextmanager
def _fit_for_fakes() -> Iterator[None]:
    """Leave out inside what fake tensors can't do, and a trace of this kind does not need.

    ``to()`` and ``float()`` of a module: all is float32 on the CPU, and torch can't put a converted
    fake tensor in the place of another. Looking for packed sequences, of which transformers takes
    the numbers: each row is one, and needs no mask. torch's grouped products of experts, which have
    no fake form in float32: transformers' own stand in.
    """
    real = nn.Module._apply

    def apply(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
        made = fn(torch.empty(0))
        if (made.dtype, made.device.type) == (torch.float32, "cpu"):
            return self
        return real(self, fn, recurse)

    with (
        mock.patch.object(nn.Module, "_apply", apply),
        mock.patch.object(masking_utils, "find_packed_sequence_indices", return_value=None),
        mock.patch.object(moe, "_can_use_grouped_mm", return_value=False),
    ):
        yield


def _traced(model: Any, rows: int, tokens: int, checkpointing: bool) -> Passes:
    inner = model.get_base_model()
    inner.config.use_cache = False
    if checkpointing:
        inner.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": False}
        )
    model.train()
    if isinstance(model, UnfrozenModel):
        model.keep_base()
    ids = torch.zeros((rows, tokens), dtype=torch.long)
    with Storages() as storages:
        storages.own(model)
        held = storages.now
        storages.reset_peak()
        with torch.no_grad(), model.disable_adapter():
            _states(model, inner, ids)
        reference = storages.peak - held
        storages.watch(model)
        start = storages.now
        storages.reset_peak()
        states = _states(model, inner, ids)
        forward = storages.peak - start
        # What goes on is some rows of the states, so that they are free, and their gradient whole.
        some = states[:, :1].sum()
        del states
        kept = storages.now - start
        storages.reset_peak()
        some.backward()
        return Passes(
            kept=kept,
            backward=storages.peak - start,
            gradients=storages.gradients_at_peak,
            forward=forward,
            reference=reference,
        )


def _states(model: Any, inner: Any, ids: Tensor) -> Tensor:
    """Return what enters the output layer."""
    caught: list[Tensor] = []
    both = {"decoder_input_ids": ids} if inner.config.is_encoder_decoder else {}
    with _catching(inner.get_output_embeddings(), caught):
        model(input_ids=ids, **both)
    return caught[0]


@contextmanager
def _catching(head: nn.Module, caught: list[Tensor]) -> Iterator[None]:
    def forward(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        caught.append(hidden)
        return hidden[..., :0]

    head.forward = forward
    try:
        yield
    finally:
        del head.forward
