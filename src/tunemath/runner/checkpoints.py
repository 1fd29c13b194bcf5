"""Checkpoints that are whole: hashed when written, hashed again before anything is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tunemath.errors import RunError
from tunemath.runner.trainer import Witness
from tunemath.storage import hash_file, read_json, write_json

__all__ = ["SealCheckpoints", "latest_checkpoint"]

_SEAL = "complete.json"


class SealCheckpoints(TrainerCallback):
    """Writes, last of all, a file of hashes and the witness's counts into each checkpoint."""

    def __init__(self, witness: Witness, resumed_at: list[int]) -> None:
        self.witness, self.resumed_at = witness, resumed_at

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal the checkpoint that the Trainer has just written, and drop older ones."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        hashes = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
        evidence = {"witness": self.witness.state(), "resumed_at": self.resumed_at}
        write_json(folder / _SEAL, {"files": hashes, **evidence})
        for other in Path(args.output_dir).glob("checkpoint-*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)


def latest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint whose seal and hashes hold; remove those that do not."""
    found: dict[int, tuple[Path, dict[str, Any]]] = {}
    for path in folder.glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if not step.isdecimal():  # somebody's copy
            continue
        seal = _seal(path)
        if seal is None:
            shutil.rmtree(path, ignore_errors=True)
        else:
            found[int(step)] = path, seal
    return found[max(found)] if found else None


def _seal(checkpoint: Path) -> dict[str, Any] | None:
    """Return a checkpoint's seal if every file is as it was when sealed."""
    try:
        seal = read_json(checkpoint / _SEAL)
        files, _, _ = seal["files"], seal["witness"], seal["resumed_at"]
        whole = all(hash_file(checkpoint / name) == sha for name, sha in files.items())
    except (RunError, OSError, KeyError, TypeError, AttributeError):
        return None
    return seal if whole else None
