"""``tunemath.json`` beside weights: what they were made from, how, and what was proven of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunemath.errors import ModelError
from tunemath.space.peft.portable import references
from tunemath.storage import read_json, write_json
from tunemath.version import __version__

__all__ = ["FILE", "Provenance", "Source", "read_provenance"]

FILE = "tunemath.json"
_FORMAT = "tunemath provenance 1"


@dataclass(frozen=True)
class Source:
    """Weights that something was made from."""

    role: Literal["base", "adapter", "tuned"]
    name: str
    """What the person called it: an id or a folder; written down, ``./NAME`` of a folder."""
    sha256: str
    """Over its configuration and weights."""


@dataclass(frozen=True)
class Provenance:
    """What weights came from and how they were made."""

    operation: str
    """As the command is called: train, merge, unmerge, extract, resize, combine."""
    sources: tuple[Source, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    proof: Mapping[str, Any] = field(default_factory=dict)

    def of(self, role: str) -> tuple[Source, ...]:
        """Return the sources of a role."""
        return tuple(source for source in self.sources if source.role == role)

    def write(self, folder: Path) -> None:
        """Write it into a folder of weights, without paths of this machine."""
        about = {"format": _FORMAT, "tunemath": __version__}
        found = references(source.name for source in self.sources)
        names = {name: reference for name, (reference, _) in found.items() if name}
        for name, reference in tuple(names.items()):
            if Path(name).is_dir():
                names[str(Path(name).resolve())] = reference
        write_json(folder / FILE, {**about, **_renamed(asdict(self), names)})


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Return JSON in which names stand for others, the longest first."""
    if isinstance(value, str):
        for name in sorted(names, key=len, reverse=True):
            if value == name or (name.startswith("/") and name in value):
                return value.replace(name, names[name])
        return value
    if isinstance(value, Mapping):
        return {_renamed(key, names): _renamed(each, names) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_renamed(each, names) for each in value]
    return value


def read_provenance(folder: Path) -> Provenance | None:
    """Return what is recorded beside weights; None where nothing is."""
    path = folder / FILE
    if not path.is_file():
        return None
    found = read_json(path)
    try:
        if found["format"] != _FORMAT:
            raise ValueError(f"format {found['format']!r}")
        sources = tuple(Source(**source) for source in found["sources"])
        texts = (found["operation"], *(text for each in sources for text in astuple(each)))
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("its operation, and what it says of each source, must be texts")
        if not all(isinstance(found[name], dict) for name in ("settings", "proof")):
            raise TypeError("settings and proof must be mappings")
        return Provenance(found["operation"], sources, found["settings"], found["proof"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} is not what this version writes ({error}); expected format {_FORMAT!r}; "
            "delete it if the weights' origin is known to you"
        ) from None
