"""A merged model on disk, compared with the adapter that it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunemath.runner.models import choose_device, load_adapter, load_base
from tunemath.runner.probes import answer_logits, difference, logit_tolerance
from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.resolve import ResolvedModel
from tunemath.runner.trainer import Row
from tunemath.space import UpdateSpace

__all__ = ["write_merged"]


def write_merged(
    model: ResolvedModel,
    space: UpdateSpace,
    adapter: Path,
    folder: Path,
    rows: Sequence[Row],
    pad: int,
) -> dict[str, Any]:
    """Merge, save as safetensors, read back, and return how far any logit is from the adapter's."""
    device, dtype = choose_device(space)
    tuned = load_adapter(load_base(model, device, dtype), adapter)
    reference, tolerance = answer_logits(tuned, rows, pad), logit_tolerance(tuned)
    with quiet_libraries():
        tuned.merge_and_unload().save_pretrained(folder, safe_serialization=True)
    again = load_base(replace(model, folder=folder), device, dtype)
    found = difference(reference, answer_logits(again, rows, pad))
    return {**found, "positions": len(reference), "tolerance": tolerance}
