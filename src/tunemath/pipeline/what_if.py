"""Planning beside a run that exists already: answered in memory, with nothing written to it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunemath.contract import FineTune
from tunemath.errors import ContractError
from tunemath.pipeline.folder import RunFolder, differences
from tunemath.pipeline.run import Run
from tunemath.pipeline.stopping import EARLY

__all__ = ["answer_only", "why_unsaved"]

Inputs = Mapping[str, dict[str, Any]]


class _Unsaved(RunFolder):
    """A run's folder of which nothing reaches the disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.products: dict[str, Any] = {}

    def write(self, name: str, value: Any) -> str:
        """Keep a product, as it would be read back."""
        self.products[name.removesuffix(".json")] = json.loads(json.dumps(value))
        return name


def why_unsaved(run: Run, inputs: Inputs) -> str | None:
    """Return why the products of `plan` and `mask` don't belong into a run's folder, if so.

    ``inputs`` are what the stages asked for read now. A folder in which no more than planning was
    done is free; one that has begun belongs to its contract and data.
    """
    if run.fresh or not run.folder.path.is_dir():
        return None
    if run.folder.busy():
        return f"another process is working on {run.folder.path}"
    if not _begun(run.folder):
        return None
    changed = _changed(run, inputs)
    if not changed:
        return None
    return f"{run.folder.path} holds a run of another contract ({'; '.join(changed)})"


def answer_only(
    run: Run, actions: Sequence[Callable[[Run], list[str]]], why: str
) -> dict[str, Any]:
    """Return the evidence of early stages without writing any; ``what_if`` says why."""
    beside = copy.copy(run)
    beside.folder = folder = _Unsaved(run.folder.path)
    for action in actions:
        action(beside)
    return {"contract": run.contract.resolved(), **folder.products, "what_if": why}


def _begun(folder: RunFolder) -> bool:
    """Say whether more than planning was done: a later stage, or a part of training."""
    later = folder.manifest()["stages"].keys() - set(EARLY)
    return bool(later) or (folder.path / "checkpoints").exists()


def _changed(run: Run, inputs: Inputs) -> list[str]:
    """Say what differs from the folder's own contract, and from what its early stages read."""
    try:
        before = FineTune.load(run.folder.path / "contract.yaml").resolved()
    except ContractError:
        return ["its contract.yaml can't be read"]
    changed = differences(before, run.contract.resolved())
    if not changed:
        for stage, now in inputs.items():
            entry = run.folder.recorded(stage)
            changed += differences(entry["inputs"], now) if entry else []
    return list(dict.fromkeys(changed))
