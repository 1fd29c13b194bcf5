"""The spectrum of a whole model's update, from two checkpoints or from an adapter's factors.

Weights are read one at a time: what is in memory is bounded by the largest of them, a few times in
float32 or float64, whatever the model's size. An adapter that others are compared with is kept
whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunemath.errors import ModelError
from tunemath.space.checkpoint import read_array
from tunemath.space.factors import Factors, lora_factors
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.tuner_factors import Kronecker, Saved, saved_factors
from tunemath.space.weights.differences import (
    Difference,
    Inventory,
    checkpoint_differences,
    read_values,
    stored_shape,
    tensor_differences,
)
from tunemath.space.weights.pairing import bare_name, pair_up
from tunemath.space.weights.reader import Weights
from tunemath.space.weights.spectra import Directions, SpectrumSettings, weight_spectra
from tunemath.space.weights.summary import summarise

__all__ = ["adapter_spectrum", "checkpoint_spectrum", "is_adapter"]

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_HEADS = ("lm_head", "embed_out", "output")
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in")
Tick = Callable[[int, int], None]


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds a PEFT adapter rather than a model."""
    return (folder / _CONFIG).is_file()


def checkpoint_spectrum(
    base: Path,
    tuned: Path,
    settings: SpectrumSettings,
    against: Path | None = None,
    tick: Tick = lambda done, total: None,
) -> dict[str, Any]:
    """Return the spectra of what differs between two models' checkpoints.

    ``base`` and ``tuned`` are folders with safetensors; ``against`` is an adapter of the same base,
    whose directions the update's are compared with. ``tick`` hears how many of how many tensors are
    done. Returns ``modules``, ``summary`` and ``inventory``, and ``skipped`` where no matrix
    differs. Raises `ModelError` where the two are no models of one architecture.
    """
    pairing, inventory = pair_up(base, tuned), Inventory()
    other = None if against is None else _directions(against, pairing.base)
    differences = checkpoint_differences(pairing, inventory, tick)
    return _product(differences, inventory, settings, other)


def adapter_spectrum(
    adapter: Path,
    base: Path | None,
    settings: SpectrumSettings,
    against: Path | None = None,
    tick: Tick = lambda done, total: None,
) -> dict[str, Any]:
    """Return the spectra of a PEFT adapter's update, from the factors that it holds.

    Without ``base`` there is neither ‖ΔW‖/‖W‖ nor a comparison with the base's directions. The
    rest is as in `checkpoint_spectrum`. Raises `ModelError` where the adapter holds no factors of
    ΔW, and where its modules are not the base's.
    """
    saved, inventory = _saved(adapter), Inventory()
    weights = None if base is None else Weights(base)
    other = None if against is None else _directions(against, weights)
    differences = _adapter_differences(saved, weights, inventory, tick)
    return _product(differences, inventory, settings, other)


def _product(
    differences: Iterable[Difference],
    inventory: Inventory,
    settings: SpectrumSettings,
    other: Directions | None,
) -> dict[str, Any]:
    rows = list(weight_spectra(differences, settings, other))
    found: dict[str, Any] = {
        "modules": rows,
        "summary": summarise(rows) if rows else {},
        "inventory": asdict(inventory),
    }
    if not rows:
        found["skipped"] = "no weight of two dimensions changed"
    return found


def _saved(adapter: Path) -> Saved:
    """Return an adapter's factors, or say why it has none."""
    found = saved_factors(adapter)
    if found is None:
        raise ModelError(
            f"{_why_no_factors(adapter)}; merge it and give two models: "
            "tunemath spectrum BASE MERGED"
        )
    if not found.modules:
        raise ModelError(f"{adapter / _WEIGHTS} has no factors of a {found.config.peft_type}")
    return found


def _why_no_factors(adapter: Path) -> str:
    kind = AdapterConfig.read(adapter / _CONFIG).peft_type
    if kind == "LORA":
        try:
            next(lora_factors(adapter))
        except ModelError as error:
            return str(error)
    return f"{adapter} is a {kind} adapter, whose files do not hold the factors of ΔW"


def _adapter_differences(
    saved: Saved, base: Weights | None, inventory: Inventory, tick: Tick
) -> Iterator[Difference]:
    names = _Names(base)
    for done, update in enumerate(saved.updates(names.shape)):
        tick(done, len(saved.modules))
        yield Difference(update.name, names.before(update), update=update)
    tick(len(saved.modules), len(saved.modules))
    for name, header in saved.others.items():
        stored = names.stored(name.replace(".base_layer", ""))
        if base is None or stored is None:
            inventory.only_tuned.append(name)
        elif base.tensors[stored].shape[1:] != header.shape[1:]:
            raise ModelError(_other_base(saved.folder, base, name, header.shape, stored))
        else:
            new = torch.from_numpy(np.array(read_array(saved.folder, header)))
            yield from tensor_differences(stored, read_values(base, stored), new, inventory)


class _Names:
    """A base's weights by the names of a live model's modules."""

    def __init__(self, base: Weights | None) -> None:
        self.base = base
        self.bare = {bare_name(name): name for name in (base.tensors if base else ())}

    def stored(self, name: str) -> str | None:
        """Return the base's name of a tensor; None where it has none."""
        return self.bare.get(bare_name(name))

    def weight(self, module: str) -> str | None:
        """Return the name of a module's weight; of a head that is tied, the embedding's."""
        found = self.stored(f"{module}.weight")
        if found is None and module.rpartition(".")[2] in _HEADS:
            ends = tuple(f"{name}.weight" for name in _EMBEDDINGS)
            found = next((name for bare, name in self.bare.items() if bare.endswith(ends)), None)
        return found

    def shape(self, module: str) -> tuple[int, ...]:
        """Return the shape of a module's weight."""
        if self.base is None:
            raise ModelError(
                f"the shape of {module} is not in the adapter; give its base: --base MODEL"
            )
        return self.base.tensors[self._known(module)].shape

    def before(self, update: Factors | Kronecker) -> Tensor | None:
        """Return the weight that an update is added to, as a matrix."""
        if self.base is None:
            return None
        name = self._known(update.name)
        weight = read_values(self.base, name)
        if not weight.is_floating_point():
            raise ModelError(
                f"{self.base.folder} stores {name} as {weight.dtype}, which are no weights yet; "
                "give the base in bfloat16 or float32"
            )
        shape = stored_shape(update)
        if weight.dim() < 2 or tuple(weight.flatten(1).shape) != shape:
            raise ModelError(_other_base(Path("the adapter"), self.base, name, shape, name))
        return weight.flatten(1)

    def _known(self, module: str) -> str:
        assert self.base is not None
        found = self.weight(module)
        if found is None:
            raise ModelError(
                f"the adapter changes {module}, which {self.base.folder} does not have; give the "
                "base that it was trained on"
            )
        return found


def _other_base(
    adapter: Path, base: Weights, name: str, shape: tuple[int, ...], stored: str
) -> str:
    return (
        f"{name} is {list(shape)} in {adapter} and {list(base.tensors[stored].shape)} in "
        f"{base.folder}; give the base that the adapter was trained on"
    )


def _directions(adapter: Path, base: Weights | None) -> Directions:
    """Return a look-up of an adapter's first singular vectors, by module."""
    names = _Names(base)
    updates = {bare_name(each.name): each for each in _saved(adapter).updates(names.shape)}

    def of(module: str, count: int) -> tuple[Tensor, Tensor] | None:
        update = updates.get(bare_name(module))
        if update is None:
            return None
        left, right = (np.ascontiguousarray(each) for each in update.directions(count))
        return (torch.from_numpy(left), torch.from_numpy(right)) if left.shape[1] else None

    return of
