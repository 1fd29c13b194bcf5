"""What a model's passes hold, traced without its weights: for families without a closed form.

The model is built and run under fake tensors, which have shapes and no memory, while every storage
is counted from its birth to its end. What a kernel needs inside itself is not seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import finalize

import peft
import torch
import transformers
from peft import PeftType
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from tunemath.budget import Curves, Mixing, Passes
from tunemath.errors import ModelError, is_of_memory
from tunemath.runner.cache import keep, recall
from tunemath.runner.fakes import build_tuned, computing, fake_tensors
from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.unfrozen import UnfrozenModel
from tunemath.space import UpdateSpace
from tunemath.space.peft import AdapterConfig
from tunemath.storage import canonical_json, hash_bytes

__all__ = ["Setting", "Storages", "trace_curves", "trace_passes"]


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


@dataclass(frozen=True)
class Setting:
    """How a traced step computes."""

    task: str = "CAUSAL_LM"
    """PEFT's, of the update."""
    class_task: str | None = None
    """The one that chooses the model's class where its configuration does not."""
    dtype: str = "float32"
    """Of the products."""
    base: str | None = None
    """Of the weights that are neither trained nor quantised, where it is another."""
    quantised: bool = False
    mixing: Mixing = "autocast"
    device: str = "cpu"
    checkpointing: bool = False
    attention: str = "sdpa"
    masked: bool = False


def trace_curves(
    config: Mapping[str, Any],
    update: UpdateSpace | AdapterConfig,
    rows: int,
    tokens: int,
    setting: Setting = Setting(),
    *,
    cache: Path | None = None,
) -> Curves:
    """Return what the passes of a config.json's model with an update hold, by rows and length.

    They are traced at B rows of T tokens, and at two smaller sizes; the result is kept in
    ``cache``, tunemath's own folder unless given. Raises `ModelError` where the model can't be
    built or run without its weights.
    """
    said = dict(update) if isinstance(update, AdapterConfig) else update.model_dump(mode="json")
    about = [2, transformers.__version__, torch.__version__, peft.__version__, dict(config)]
    about += [said, rows, tokens, asdict(setting)]
    key = hash_bytes(canonical_json(about))
    with suppress(ValueError, TypeError, RecursionError):  # none, or a damaged one
        points = json.loads(recall("traces", key, cache) or "")
        return Curves(tuple((tuple(at), Passes(**passes)) for at, passes in points))

    def make() -> Any:
        return build_tuned(
            config, update, task=setting.task, class_task=setting.class_task, dtype=setting.dtype,
            base=setting.base, quantised=setting.quantised, mixing=setting.mixing,
            attention=setting.attention,
        )  # fmt: skip

    half = max(1, tokens // 2)
    sizes = ((rows, max(tokens, 2 * half)), (rows, half), (2 * rows, half))
    found = tuple((size, trace_passes(make, *size, setting)) for size in sizes)
    text = json.dumps([[list(size), asdict(passes)] for size, passes in found])
    keep("traces", key, text, cache)
    return Curves(found)


def trace_passes(
    make: Callable[[], Any], rows: int, tokens: int, setting: Setting = Setting()
) -> Passes:
    """Return what the passes of a model's body hold with B rows of T tokens.

    The body is all before the output layer of a language model, and all of another. ``make`` builds
    the model with its update; it is called under fake tensors.
    """
    try:
        with (
            quiet_libraries(),
            fake_tensors(setting.masked),
            computing(setting.dtype, setting.mixing, setting.device) as forward,
        ):
            return _traced(make(), rows, tokens, setting, forward)
    except ModelError:
        raise
    except Exception as error:  # a family's code may ask for numbers, which fake tensors lack
        if is_of_memory(error):
            raise
        raise ModelError(
            "this model can't be traced without its weights: "
            f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        ) from error


def _traced(
    model: Any, rows: int, tokens: int, setting: Setting, forward: Callable[[], Any]
) -> Passes:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.config.use_cache = False
    if setting.checkpointing:
        inner.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": False}
        )
    model.train()
    if isinstance(model, UnfrozenModel):
        model.keep_base()
    ids = torch.zeros((rows, tokens), dtype=torch.long)
    inputs = {"input_ids": ids}
    if setting.masked:
        inputs["attention_mask"] = torch.ones_like(ids)
    if inner.config.is_encoder_decoder and _head(inner) is not None:
        inputs["decoder_input_ids"] = ids
    if getattr(model, "peft_type", None) in (PeftType.MULTITASK_PROMPT_TUNING, PeftType.POLY):
        inputs["task_ids"] = torch.zeros(rows, dtype=torch.long)
    off = getattr(model, "disable_adapter", nullcontext)
    with Storages() as storages:
        storages.own(model)
        held = storages.now
        storages.reset_peak()
        with torch.no_grad(), off(), forward():
            _states(model, inner, inputs)
        reference = storages.peak - held
        storages.watch(model)
        start = storages.now
        storages.reset_peak()
        with forward():
            states = _states(model, inner, inputs)
        peak = storages.peak - start
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
            forward=peak,
            reference=reference,
        )


def _head(inner: Any) -> Any:
    """Return the output layer of a language model; None where a model has none."""
    try:
        return inner.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def _states(model: Any, inner: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Return what enters the output layer, or without one what the model gives."""
    head = _head(inner)
    if head is None:
        return model(**inputs, return_dict=False)[0]
    caught: list[Tensor] = []
    with _catching(head, caught):
        model(**inputs)
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
