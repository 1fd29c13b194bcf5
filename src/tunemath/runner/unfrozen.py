"""Training weights of the model itself: all, or those of a method such as BitFit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from tunemath.errors import RunError
from tunemath.runner.blueprints import blueprint_of
from tunemath.runner.tuned import TunedModel
from tunemath.space import LastLayersSpace, UnfreezeSpace, change_of

__all__ = ["UnfrozenModel"]


class UnfrozenModel(TunedModel):
    """A model some of whose own weights are trained.

    Where it is asked to, it keeps a frozen copy of these as they were: the reference of DPO and of
    KL(tuned ‖ base). Half precision loses small steps, so the model is held in float32.
    """

    def __init__(self, base: Any, space: UnfreezeSpace | LastLayersSpace) -> None:
        super().__init__(base.float(), space)
        chosen = change_of(blueprint_of(base), space).unfrozen
        base.requires_grad_(False)
        for name, parameter in base.named_parameters(remove_duplicate=False):
            if name in chosen:
                parameter.requires_grad_(True)
        self._places: list[tuple[nn.Module, str, nn.Parameter]] = []

    @property
    def keeps_base(self) -> bool:
        """Whether there is a copy of the base's weights, so that the update can be switched off."""
        return bool(self._places)

    def keep_base(self) -> None:
        """Copy the weights that are trained as they are now."""
        copies = {
            parameter: nn.Parameter(parameter.detach().clone(), requires_grad=False)
            for parameter in self.trained().values()
        }
        self._places = [
            (module, key, copies[parameter])
            for module in self.base_model.modules()
            for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
            if parameter in copies
        ]

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Let the model be the base inside: other tensors take the trained ones' places."""
        if not self.keeps_base:
            raise RunError("no copy of the base's own weights was kept; load the base beside it")
        inside = [getattr(module, key) for module, key, _ in self._places]
        for module, key, copy in self._places:
            setattr(module, key, copy)
        try:
            yield
        finally:
            for (module, key, _), parameter in zip(self._places, inside, strict=True):
                setattr(module, key, parameter)

    def merge_and_unload(self) -> Any:
        """Return the model itself: its weights are the tuned ones."""
        return self.base_model
