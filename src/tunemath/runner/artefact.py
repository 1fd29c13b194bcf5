"""The proof that the trained model, the saved update and the merged model are one.

Training leaves its probe: a few rows and the trained model's logits on them. So the proof can be
made, and made again, when the trained model is gone, and never holds more than one copy of the
base: the update is loaded and merged in place, and what was written is read back after that is let
go.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tunemath.budget.peaks import PROBE_LOGITS
from tunemath.errors import RunError
from tunemath.runner.models import choose_device, load_base, load_trained, why_not_merged
from tunemath.runner.probing import answer_logits, compared, tolerance_of
from tunemath.runner.progress import Progress
from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.resolve import ResolvedModel
from tunemath.runner.trainer import Row
from tunemath.runner.verifying import verify_product
from tunemath.space import UpdateSpace
from tunemath.space.weights.recipe import NamesDiffer
from tunemath.storage import storage_errors

__all__ = ["Probe", "prove_artefact"]

_SHARD = 2**30
"""The most bytes of a file of the merged model, which on a GPU are copied to be written."""


@dataclass(frozen=True)
class Probe:
    """Rows, and a model's logits at positions where these are answers."""

    rows: list[Row]
    logits: Tensor
    """(N, V), float32."""

    @classmethod
    def of(cls, model: Any, rows: Sequence[Row]) -> Probe:
        """Ask a live model."""
        return cls(list(rows), answer_logits(model, rows, PROBE_LOGITS).cpu())

    def write(self, path: Path) -> None:
        """Write rows and logits into one safetensors file, whole or not at all."""
        rows = [[list(ids), list(map(int, supervised))] for ids, supervised in self.rows]
        part = path.with_name(f".{path.name}.part")
        with storage_errors(path):
            try:
                save_file({"logits": self.logits}, part, metadata={"rows": json.dumps(rows)})
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> Probe:
        """Read what `write` wrote."""
        try:
            with safe_open(path, framework="pt") as file:
                logits = file.get_tensor("logits")
                rows = json.loads(file.metadata()["rows"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} is damaged ({error}); train again with --fresh") from error
        return cls([(ids, [bool(c) for c in supervised]) for ids, supervised in rows], logits)

    def beside(self, model: Any) -> dict[str, float]:
        """Return how far a model's logits are from the probe's, and KL(model ‖ probe)."""
        return compared(self.logits, answer_logits(model, self.rows, PROBE_LOGITS).cpu())


def prove_artefact(
    model: ResolvedModel,
    update: Path,
    space: UpdateSpace,
    probe: Probe,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Compare the trained model's logits with those of each thing that a user may deploy.

    The saved update on a fresh base; where it can be merged, that one merged in place, and the
    merged model written to ``folder``, which is deleted afterwards, and read back. The largest
    difference of any logit and the mean KL to the trained model are reported, and of the merged
    model's tensors what they hold of the update.
    """
    where = choose_device(space)
    why = why_not_merged(space)
    steps = 1 if why is not None else 4
    progress("artefact", 0, steps)
    with _fresh(folder):
        found = _of_live(load_trained(model, update, *where), probe, folder, why is None)
        progress("artefact", min(2, steps), steps)
        if why is not None:
            return {**found, "not_merged": why}
        again = load_base(replace(model, id=str(folder), folder=folder), *where)
        found["adapter_vs_reloaded_merged"] = probe.beside(again)
        del again
        gc.collect()  # what follows holds no model
        progress("artefact", 3, steps)
        found |= _of_product(model, update, folder)
    progress("artefact", steps, steps)
    return found


def _of_live(tuned: Any, probe: Probe, folder: Path, merges: bool) -> dict[str, Any]:
    """Compare the update on a fresh base, then merged into that; the merged model is written."""
    found: dict[str, Any] = {"positions": len(probe.logits), "tolerance": tolerance_of(tuned)}
    found["adapter_vs_reloaded"] = probe.beside(tuned)
    if merges:
        with quiet_libraries(), storage_errors(folder):
            if hasattr(tuned, "merge_and_unload"):
                tuned = tuned.merge_and_unload()
            found["adapter_vs_merged"] = probe.beside(tuned)
            tuned.save_pretrained(folder, safe_serialization=True, max_shard_size=_SHARD)
    return found


@contextmanager
def _fresh(folder: Path) -> Iterator[None]:
    """Let a folder be gone before and after."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _of_product(model: ResolvedModel, update: Path, folder: Path) -> dict[str, Any]:
    """Hold the merged model's tensors against base and update, as their files give them."""
    try:
        found = verify_product(model, update, folder, probe=False)
    except NamesDiffer as why:
        return {"weights": {"unmeasured": str(why)}}
    del found["update"], found["dtype"]
    return found
