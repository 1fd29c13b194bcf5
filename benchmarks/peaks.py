"""The memory that `plan` foretells for each stage of a run, beside what the stage held.

    python benchmarks/peaks.py [CONTRACT] [--set KEY=VALUE]…

Runs the contract in a temporary folder. In every stage each tensor's storage is counted while it is
alive, the base's mapped ones included; what libraries and the allocator take for themselves
is not counted, nor foretold.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunemath import FineTune, Run, advance, pipeline

ROOT = Path(__file__).resolve().parent.parent
COUNTED = ("baselines", "train", "artefact", "evaluate", "movement")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "contract", nargs="?", type=Path, default=ROOT / "examples" / "dates" / "sft.yaml"
    )
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        run = Run(FineTune.load(arguments.contract, arguments.overrides), runs)
        foretold, counted = measure(run)
    print(f"{'stage':<12}{'foretold MiB':>14}{'counted MiB':>14}{'error':>9}")
    for stage, peak in counted.items():
        line(stage, foretold[stage], peak)
    line("the run", max(foretold.values()), max(counted.values()))


def measure(run: Run) -> tuple[dict[str, int], dict[str, int]]:
    """Return the bytes of each stage, as foretold and as counted."""
    from tunemath.runner import models
    from tunemath.runner.tracing import Storages

    counted: dict[str, int] = {}
    read = models.read_model

    def watched(stage: pipeline.Stage) -> pipeline.Stage:
        def action(run: Run) -> list[str]:
            with Storages() as storages:

                def owned(*args: Any, **kwargs: Any) -> Any:  # mapped weights are made by no op
                    model = read(*args, **kwargs)
                    storages.own(model)
                    return model

                models.read_model = owned
                files = stage.action(run)
            counted[stage.name] = storages.peak
            return files

        return replace(stage, action=action) if stage.name in COUNTED else stage

    plain = pipeline.STAGES
    pipeline.STAGES = tuple(watched(stage) for stage in plain)
    try:
        evidence = advance(run, "movement")
        evidence = advance(run, "artefact")
        evidence = advance(run, "evaluate")
    finally:
        pipeline.STAGES, models.read_model = plain, read
    return evidence["plan"]["memory"]["stages"], {s: counted[s] for s in COUNTED}


def line(stage: str, foretold: int, counted: int) -> None:
    error = 100 * (foretold / counted - 1)
    print(f"{stage:<12}{foretold / 2**20:>14.1f}{counted / 2**20:>14.1f}{error:>+8.1f} %")


if __name__ == "__main__":
    main()
