"""A model with its update, under fake tensors or real ones, as it would be trained.

What is trained is float32, as PEFT holds it, or with ``pure`` in the dtype of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from peft import PeftConfig, PromptLearningConfig, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from transformers import masking_utils
from transformers.integrations import moe

from tunemath.budget import Mixing
from tunemath.runner.blueprints import blueprint_of, build_from_config
from tunemath.runner.models import attach_adapter
from tunemath.space import LastLayersSpace, LoraSpace, UnfreezeSpace, UpdateSpace, change_of
from tunemath.space.methods import peft_settings
from tunemath.space.peft import AdapterConfig

__all__ = ["build_tuned", "computing", "fake_tensors"]

# The operations that autocast does in float32 on a GPU; on a CPU nearly none.
# https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-can-autocast-to-float32
_IN_FLOAT32 = frozenset(
    {
        "cosine_similarity", "cross_entropy", "cumprod", "cumsum", "exp", "expm1", "group_norm",
        "layer_norm", "log", "log10", "log1p", "log2", "log_softmax", "norm", "normalize", "pow",
        "__pow__", "__rpow__", "prod", "reciprocal", "rsqrt", "softmax", "softmin", "softplus",
        "sum", "__rtruediv__",
    }
)  # fmt: skip


def build_tuned(
    config: Mapping[str, Any],
    update: UpdateSpace | AdapterConfig,
    *,
    task: str = "CAUSAL_LM",
    class_task: str | None = None,
    dtype: str = "float32",
    base: str | None = None,
    quantised: bool = False,
    mixing: Mixing = "autocast",
    attention: str = "sdpa",
) -> Any:
    """Return a config.json's model with an update, ready for a step.

    ``task`` is PEFT's of the update, ``class_task`` the one that chooses the model's class where
    the configuration does not; ``base`` the dtype of the weights where it is not ``dtype``. The
    linear layers but the output layer can be ``quantised``.
    """
    held = getattr(torch, base or dtype)
    with _default_dtype(held):
        model = build_from_config(config, class_task, "cpu")
    model.to(held)
    if quantised:
        _quantise(model, getattr(torch, dtype))
    # transformers has no fused attention for some families, and takes the eager one itself.
    fused = getattr(model, "_supports_sdpa", True)
    model.set_attn_implementation(attention if fused else "eager")
    tuned = _attached(model, update, task, mixing)
    own = isinstance(update, UnfreezeSpace | LastLayersSpace)
    if mixing == "pure" or own:
        _hold_trained_in(tuned, held if mixing == "pure" else torch.float32)
    return tuned


def _attached(model: Any, update: UpdateSpace | AdapterConfig, task: str, mixing: Mixing) -> Any:
    if isinstance(update, UnfreezeSpace | LastLayersSpace):
        chosen = change_of(blueprint_of(model), update).unfrozen
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
        return model
    if isinstance(update, LoraSpace):
        kind, values = peft_settings(update, task)
        update = AdapterConfig(kind, **values)
    if not isinstance(update, AdapterConfig):
        return attach_adapter(model, update, seed=0)
    values = {**update, "inference_mode": False}
    if not isinstance(values.get("init_lora_weights", True), bool):
        values["init_lora_weights"] = True  # how factors start takes no memory in a step
    if not hasattr(model, "prepare_inputs_for_generation") and "LM" in (values["task_type"] or ""):
        values["task_type"] = None  # a masked language model, which PEFT has no task for
    config: Any = PeftConfig.from_peft_type(**values)
    tuned = get_peft_model(model, config, autocast_adapter_dtype=mixing != "pure")
    if isinstance(config, PromptLearningConfig):
        model.config.use_cache = False
    return tuned


class _Product(torch.autograd.Function):
    """A quantised layer's product, which keeps nothing but the packed weight, as bitsandbytes'."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return states @ weight.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ ctx.weight, None


class _Quantised(nn.Linear):
    """A 4-bit linear layer as far as memory goes: it gives the dtype that it is given."""

    def forward(self, input: Tensor) -> Tensor:
        made = _Product.apply(input.to(self.weight.dtype), self.weight)
        return (made if self.bias is None else made + self.bias).to(input.dtype)


def _quantise(model: Any, dtype: torch.dtype) -> None:
    head = model.get_output_embeddings()
    for module in model.modules():
        if type(module) is nn.Linear and module is not head:
            module.__class__ = _Quantised
            module.to(dtype)


def _hold_trained_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the trained parameters by ones of a dtype; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for key, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter.requires_grad and parameter.dtype != dtype:
                new = made.setdefault(id(parameter), nn.Parameter(parameter.detach().to(dtype)))
                setattr(module, key, new)


@contextmanager
def fake_tensors(masked: bool = False) -> Iterator[None]:
    """Let tensors have shapes and no memory inside, and leave out what these can't do.

    Modules change dtype by new parameters, as torch can't put a converted fake tensor in the place
    of another. Masks, of which transformers reads the numbers, are there by ``masked`` alone, and
    rows are never packed. torch's grouped products of experts have no fake form in float32:
    transformers' own stand in.
    """
    replaced = {
        "find_packed_sequence_indices": lambda *_, **__: None,
        "_ignore_causal_mask_sdpa": lambda *_, **__: not masked,
        "_ignore_bidirectional_mask_sdpa": lambda *_, **__: not masked,
    }
    with (
        mock.patch.multiple(masking_utils, **replaced),
        mock.patch.object(nn.Module, "_apply", _apply),
        # PEFT copies modules deeply; what is copied belongs to the same mode.
        mock.patch.object(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, create=True),
        mock.patch.object(moe, "_can_use_grouped_mm", return_value=False),
        FakeTensorMode(),
        _Answers(),
    ):
        yield


class _Answers(TorchFunctionMode):
    """Answers what code asks of numbers that aren't there, as a step of training would.

    PEFT asks whether an adapter is dropped whole (it is not: a comparison holds), whether any
    number is infinite (none is), and builds permutations element by element (they take no memory).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__bool__":
            return not getattr(args[0], "_is_any", False)
        if name == "__setitem__" and _is_one_element(args[1]):
            return None
        result = func(*args, **(kwargs or {}))
        if name == "any" and isinstance(result, Tensor):
            result._is_any = True  # pyright: ignore[reportAttributeAccessIssue]
        return result


def _is_one_element(index: Any) -> bool:
    """Whether an index names an element by numbers of which one is a tensor's."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dim() == 0 for part in parts)


def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Do what torch's own ``_apply`` does, by new parameters where the dtype changes."""
    made: dict[int, nn.Parameter] = {}
    for module in self.modules() if recurse else (self,):
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                with torch.no_grad():
                    new = fn(parameter.detach())
                made[id(parameter)] = (
                    parameter
                    if new.dtype == parameter.dtype
                    else nn.Parameter(new, requires_grad=parameter.requires_grad)
                )
            module._parameters[key] = made[id(parameter)]
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else fn(buffer)
    return self


@contextmanager
def computing(dtype: str, mixing: Mixing, device: str) -> Iterator[Callable[[], Any]]:
    """Give what the forward pass is run in: autocast as on ``device``, or nothing.

    A GPU's list of operations in float32 holds while it is open, as recomputing a layer passes
    through them too.
    """
    cast = mixing == "autocast" and dtype != "float32"

    def forward() -> Any:
        return torch.autocast("cpu", dtype=getattr(torch, dtype), enabled=cast)

    if cast and device == "cuda":
        with _OnGpu():
            yield forward
    else:
        yield forward


class _OnGpu(TorchFunctionMode):
    """Casts to float32 what autocast on a GPU does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_to_float32, (args, kwargs))
        return func(*args, **kwargs)


def _to_float32(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
