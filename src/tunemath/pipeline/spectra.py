"""The spectrum of any update: what a run trained, an adapter, or a model beside its base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunemath.contract import ModelChoice
from tunemath.errors import ModelError
from tunemath.pipeline.run import Run
from tunemath.pipeline.using import need_update
from tunemath.runner.bound import refuse_altered

if TYPE_CHECKING:
    from tunemath.space.weights.spectra import SpectrumSettings

__all__ = ["spectrum_of", "spectrum_of_run"]

Tick = Callable[[int, int], None]


def spectrum_of_run(
    run: Run, settings: SpectrumSettings, against: Path | None, tick: Tick
) -> dict[str, Any]:
    """Return the spectra of what a run trained, from its weights and those of its base.

    Raises `ModelError` for a method that changes no weight.
    """
    from tunemath.runner.models import why_not_merged

    need_update(run)
    why = why_not_merged(run.contract.space)
    if why is not None:
        raise ModelError(f"{run.folder.path} has no spectrum: {why}")
    found = spectrum_of(str(run.model.folder), run.update, settings, against, tick)
    return found | {"base": run.contract.model.id, "tuned": run.contract.name}


def spectrum_of(
    base: str | None,
    tuned: Path,
    settings: SpectrumSettings,
    against: Path | None,
    tick: Tick,
) -> dict[str, Any]:
    """Return the spectra of an adapter, or of a model beside its base.

    ``base`` is a folder, a file of weights, or a model's id; None for an adapter alone. ``against``
    is another adapter of the same base. Beside what `checkpoint_spectrum` returns, ``base``,
    ``tuned`` and ``against`` say what was compared, and ``settings`` how.
    """
    from tunemath.runner.resolve import resolve_model
    from tunemath.space.weights.model_spectrum import (
        adapter_spectrum,
        checkpoint_spectrum,
        is_adapter,
    )

    for folder in (tuned, against):
        if folder is not None:
            refuse_altered(folder)
    if against is not None and not is_adapter(against):
        raise ModelError(f"{against} is no adapter: it has no adapter_config.json; give its folder")
    weights = None
    if base is not None:
        given = Path(base)
        weights = given if given.exists() else resolve_model(ModelChoice.named(base)).folder
        refuse_altered(weights if weights.is_dir() else weights.parent)
    if is_adapter(tuned):
        found = adapter_spectrum(tuned, weights, settings, against, tick)
    elif weights is None:
        raise ModelError(f"{tuned} is no adapter; give its base too: tunemath spectrum BASE TUNED")
    else:
        found = checkpoint_spectrum(weights, tuned, settings, against, tick)
    return {
        "base": base,
        "tuned": str(tuned),
        "against": None if against is None else str(against),
        "settings": asdict(settings),
        **found,
    }
