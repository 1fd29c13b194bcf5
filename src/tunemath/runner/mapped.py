"""Models whose weights stay in their files: mapped, and cast to float32 one module at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tunemath.errors import ModelError
from tunemath.runner.loading import one_line, read_model
from tunemath.runner.quiet import quiet_libraries
from tunemath.space import Blueprint, read_tensor_headers
from tunemath.space.weights.changes import Change
from tunemath.space.weights.names import stored_names
from tunemath.space.weights.reader import TORCH_DTYPES, Weights

__all__ = ["computed_changes", "computing_in_float32", "read_mapped", "stored_dtype"]

Cast = Callable[[str, Tensor], Tensor]


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the floating-point dtype that most of a model's numbers are stored in."""
    sizes: Counter[str] = Counter()
    for header in read_tensor_headers(folder).values():
        if TORCH_DTYPES.get(header.dtype, torch.int8).is_floating_point:
            sizes[header.dtype] += prod(header.shape)
    return TORCH_DTYPES[sizes.most_common(1)[0][0]] if sizes else torch.float32


def read_mapped(folder: Path, name: str, trust_remote_code: bool = False) -> Any:
    """Return the causal model of a folder in the dtype that it is stored in.

    Its weights are mapped from the files as long as nothing casts them, so they take no memory of
    the process's own.
    """
    return read_model(
        AutoModelForCausalLM,
        folder,
        name,
        dtype=stored_dtype(folder),
        trust_remote_code=trust_remote_code,
    ).eval()


@contextmanager
def computing_in_float32(model: nn.Module, cast: Cast | None = None) -> Iterator[None]:
    """Let a model run in float32 inside: each module's parameters are cast while it runs.

    An adapter's layer is one module with all that lies in it. ``cast`` gives the float32 values of
    a parameter by its name, where they are to be others than the stored ones.
    """
    handles, own = [], cast or (lambda name, values: values.float())
    try:
        for name, module in _units(model):
            unit = _Unit(name, module, own)
            handles.append(module.register_forward_pre_hook(unit.enter))
            handles.append(module.register_forward_hook(unit.leave, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Unit:
    """A module whose parameters are float32 while it runs."""

    def __init__(self, name: str, module: nn.Module, cast: Cast) -> None:
        self.name, self.module, self.cast = name, module, cast
        self.kept: list[tuple[nn.Module, str, nn.Parameter]] = []

    def enter(self, *_: Any) -> None:
        """Put float32 copies in the places of parameters that are in another dtype."""
        deep = isinstance(self.module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        copied = isinstance(self.module, ModulesToSaveWrapper)  # its original is not used

        def aside(path: str) -> bool:
            return copied and path.startswith("original_module")

        for path, holder in self.module.named_modules() if deep else [("", self.module)]:
            for key, parameter in list(holder._parameters.items()):
                if parameter is None or not parameter.is_floating_point() or aside(path):
                    continue
                name = ".".join(part for part in (self.name, path, key) if part)
                values = self.cast(name, parameter.data)
                if values is not parameter.data:
                    self.kept.append((holder, key, parameter))
                    holder._parameters[key] = nn.Parameter(values, requires_grad=False)

    def leave(self, *_: Any) -> None:
        """Put the parameters back; the copies are freed."""
        for holder, key, parameter in self.kept:
            holder._parameters[key] = parameter
        self.kept.clear()


def _units(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield modules that own parameters, and adapters' layers in place of what lies in them."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            inside = (*inside, f"{name}.")
            yield name, module
        elif any(True for _ in module.parameters(recurse=False)):
            yield name, module


def computed_changes(
    load: Callable[[], Any], base: Weights, blueprint: Blueprint
) -> dict[str, Change]:
    """Return the parameters of layers that PEFT merges, each computed when it is asked for.

    One layer is given its real weights in float32, merged, read and let go, before the next.
    """
    live = load()
    layers = _Layers(live, base, stored_names(base.tensors, blueprint))
    return {
        name: Change(module, whole=partial(layers.merged, module, name))
        for module, name in layers.parameters()
    }


class _Layers:
    """A model's adapted layers, merged one at a time; the last one is kept."""

    def __init__(self, live: Any, base: Weights, stored: Mapping[str, str]) -> None:
        self.base, self.stored = base, stored
        self.layers = {
            name: module
            for name, module in _units(live.get_base_model())
            if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
        }
        self.last: tuple[str, dict[str, Tensor]] = ("", {})

    def parameters(self) -> Iterator[tuple[str, str]]:
        """Yield module and full name of every parameter that a merged layer has."""
        for module, layer in self.layers.items():
            inner: Any = layer
            base = inner.get_base_layer() if hasattr(inner, "get_base_layer") else inner
            base = base.original_module if hasattr(base, "original_module") else base
            for name, parameter in base.named_parameters():
                if parameter.is_floating_point():
                    yield module, f"{module}.{name}"

    def merged(self, module: str, name: str) -> Tensor:
        """Return one parameter of a layer as it is merged, float32."""
        if self.last[0] != module:
            self.last = module, self._merge(module)
        return self.last[1][name]

    def _merge(self, module: str) -> dict[str, Tensor]:
        layer: Any = self.layers[module]
        unit = _Unit(module, layer, self._cast)
        before = [(each, dict(each._modules)) for each in layer.modules()]
        try:
            unit.enter()
            with quiet_libraries():
                if hasattr(layer, "unload_and_optionally_merge_module"):
                    made = layer.unload_and_optionally_merge_module(True, False, None)
                else:
                    layer.merge()
                    made = layer.get_base_layer()
            return {f"{module}.{n}": p.data for n, p in made.named_parameters()}
        except (ValueError, NotImplementedError, RuntimeError, AttributeError) as error:
            raise ModelError(
                f"PEFT cannot merge {module} ({one_line(error)}); deploy the adapter beside its "
                "base"
            ) from error
        finally:
            unit.leave()
            for each, modules in before:
                each._modules.clear()
                each._modules.update(modules)
            for each in layer.modules():
                if isinstance(each, BaseTunerLayer):
                    each.merged_adapters = []

    def _cast(self, name: str, values: Tensor) -> Tensor:
        """Return the stored values of the base's own parameters, a copy of all others."""
        live = name.replace(".base_layer.", ".") if ".base_layer." in name else ""
        if live in self.stored:
            return self.base.read(self.stored[live]).float().clone()
        return values.to(torch.float32, copy=True)
