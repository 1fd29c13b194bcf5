"""A base model with an update that PEFT has no form for: switched off and on, saved, loaded.

``update.safetensors`` holds the trained tensors under their names in the model, and
``update.json`` the method and the SHA-256 of the base that they belong to. A model that is
trained in full is saved as an ordinary model folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tunemath.errors import ContractError, ModelError
from tunemath.runner.loading import one_line, read_model, read_tensors
from tunemath.runner.quiet import quiet_libraries
from tunemath.space import (
    AdapterSpace,
    LastLayersSpace,
    UnfreezeSpace,
    UpdateSpace,
    read_space,
)
from tunemath.storage import read_json, write_json

__all__ = ["CONFIG", "TENSORS", "TunedModel", "space_of"]

CONFIG = "update.json"
TENSORS = "update.safetensors"


class TunedModel(nn.Module):
    """A model and its update; whatever is not defined here is the base model's own."""

    def __init__(self, base: Any, space: UpdateSpace) -> None:
        super().__init__()
        self.base_model = base
        self.space = space

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model with the update in its present state."""
        return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as the model does."""
        return self.base_model.generate(*args, **kwargs)

    def get_base_model(self) -> Any:
        """Return the transformers model inside."""
        return self.base_model

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Let the model be the base inside."""
        raise NotImplementedError
        yield

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":  # not there yet: there is nothing to ask
                raise
            return getattr(self.base_model, name)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by their names in the base model."""
        return {name: p for name, p in self.base_model.named_parameters() if p.requires_grad}

    def save_pretrained(
        self, folder: str | Path, base: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        """Save the update; ``base`` says what it belongs to, by ``id`` and ``sha256``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.space.method == "full":
            with quiet_libraries():
                self.base_model.save_pretrained(folder, safe_serialization=True)
        else:
            tensors = {name: p.detach().cpu().contiguous() for name, p in self.trained().items()}
            save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
        about = {"format": "tunemath update", "space": self.space.model_dump(mode="json")}
        write_json(folder / CONFIG, {**about, "base": dict(base or {})})

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Take the trained tensors from a folder; any that is missing or of other shape raises."""
        found = self._saved(folder)
        for name, parameter in self.trained().items():
            if name not in found or found[name].shape != parameter.shape:
                shape = tuple(found[name].shape) if name in found else "no tensor"
                raise ModelError(
                    f"{folder} has {shape} for {name}, whose shape is {tuple(parameter.shape)}; "
                    "it was saved for another model"
                )
            parameter.copy_(found[name])

    def _saved(self, folder: Path) -> dict[str, Tensor]:
        if self.space.method != "full":
            return read_tensors(folder / TENSORS)
        whole = read_model(type(self.base_model), folder, str(folder), dtype=self.base_model.dtype)
        return dict(whole.named_parameters())


def space_of(folder: Path) -> UpdateSpace:
    """Return how a saved update was trained.

    Raises `ModelError` where update.json is damaged; the message names it.
    """
    path = folder / CONFIG
    about = read_json(path)
    about = about if isinstance(about, dict) else {}
    values, origin = about.get("space"), about.get("base")
    if not isinstance(values, dict) or not isinstance(origin, dict):
        raise ModelError(
            f"{path} has no space and base, as a saved update's has; copy it again, or train again"
        )
    try:
        space = read_space(values)
    except ContractError as error:
        raise ModelError(
            f"{path} has a space that cannot be read ({one_line(error)}); copy it again, or train "
            "again"
        ) from error
    if not isinstance(space, AdapterSpace | LastLayersSpace | UnfreezeSpace):
        raise ModelError(
            f"{path} has the method {space.method}, whose updates PEFT saves; copy it again, or "
            "train again"
        )
    return space
