"""What a run's manifest binds: an update's folder is used only as the run wrote it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tunemath.errors import RunError
from tunemath.runner.cache import file_hash
from tunemath.space.weights.carried import CARRIED
from tunemath.storage import canonical_json, hash_bytes, read_json

__all__ = ["MANIFEST", "UPDATES", "altered", "key_of", "read_manifest", "refuse_altered"]

MANIFEST = "manifest.json"
UPDATES = ("adapter", "weights")
"""The folders of a run that hold what it trained."""
_CONTRACT = "contract.yaml"
_WEIGHTS = ".safetensors"
_READ_BY_PEOPLE = ("LICENSE", "NOTICE")


def refuse_altered(folder: Path, anew: bool = True) -> None:
    """Raise `RunError` where a run wrote the weights in ``folder``, and not all is as it was then.

    A folder that is not a run's, or that no stage has recorded, is not judged. Files are read
    ``anew``, or their hashes may be remembered ones.
    """
    place = folder.resolve()
    stages = _stages(place.parent) if place.name in UPDATES else {}
    known = {name for entry in stages.values() for name in entry["products"]}
    for entry in stages.values():
        own = {k: sha for k, sha in entry["products"].items() if k.startswith(f"{place.name}/")}
        if not any(name.endswith(_WEIGHTS) for name in own):
            continue
        for name, what in altered(place.parent, own, known, anew).items():
            raise RunError(
                f"{place.parent / name} {what} after train was recorded in {MANIFEST}, so these "
                "are not the weights that were measured; put back what was there, or train again "
                "with --fresh"
            )


def altered(
    run: Path, products: Mapping[str, str], known: Collection[str], anew: bool = True
) -> dict[str, str]:
    """Return which of a stage's products, by name, are not as it wrote them, and what they are.

    Beside an update nothing may be added, since tokenizers, templates and settings are read from
    there, but what people read, and hidden files. Weights that are a whole model may be given the
    tokenizer that makes them one. ``known`` are the products of all stages.
    """
    found = {}
    for name, sha in products.items():
        path = run / name
        if not path.is_file():
            found[name] = "is missing"
        elif file_hash(path, anew) != sha:
            found[name] = "changed"
    for folder in sorted({Path(name).parts[0] for name in products} & {*UPDATES}):
        allowed = CARRIED if f"{folder}/config.json" in products else ()
        for path in sorted((run / folder).iterdir()) if (run / folder).is_dir() else ():
            name = path.relative_to(run).as_posix()
            if name not in known and not _harmless(path, allowed):
                found[name] = "was added"
    return found


def _harmless(path: Path, allowed: Collection[str]) -> bool:
    by_people = path.name.startswith(".") or path.suffix == ".md" or path.stem in _READ_BY_PEOPLE
    return by_people or any(path.match(pattern) for pattern in allowed)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a run's manifest; `RunError` where it is not as a run writes it."""
    try:
        found = read_json(path)
        stages = found["stages"]
        json.dumps(found, allow_nan=False)  # as it was written
        if all(map(_is_entry, stages.values())):
            return found
    except (RunError, ValueError, TypeError, KeyError, AttributeError):
        pass
    raise RunError(
        f"{path} can't be read as a run's manifest, so nothing says whether what lies beside it is "
        "what was measured; put it back, or train again with --fresh"
    )


def _is_entry(entry: Any) -> bool:
    """Say whether what a manifest has of a stage has its form, and the key of its inputs."""
    if not isinstance(entry, dict):
        return False
    inputs, products, seconds = (entry.get(name) for name in ("inputs", "products", "seconds"))
    return (
        isinstance(inputs, dict)
        and entry.get("key") == key_of(inputs)
        and isinstance(products, dict)
        and all(isinstance(sha, str) for sha in products.values())
        and isinstance(seconds, int | float)
        and seconds >= 0
    )


def key_of(inputs: Mapping[str, Any]) -> str:
    """Return the hash that stands for what a stage read."""
    return hash_bytes(canonical_json(dict(inputs)))


def _stages(run: Path) -> dict[str, Any]:
    """Return what a run's manifest has of its stages; nothing for a folder that is no run."""
    path = run / MANIFEST
    if not path.is_file():
        return {}
    try:
        return read_manifest(path)["stages"]
    except (RunError, OSError):
        if (run / _CONTRACT).is_file():
            raise
        return {}  # somebody else's file of this name
