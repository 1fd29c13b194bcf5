"""Predicted seconds beside measured ones, stage by stage, for a contract.

    python benchmarks/stages.py [CONTRACT] [--runs DIR]

Runs whatever stages of the contract have not run yet (all of them in an empty --runs folder, which
is the default: a temporary one), then prints both figures and their ratio. Run it on an idle
machine: the prediction starts from a matrix-product rate that is measured when the plan is made.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from pathlib import Path

from tunemath import FineTune, Run, advance

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "contract", nargs="?", type=Path, default=ROOT / "examples" / "dates" / "sft.yaml"
    )
    parser.add_argument("--runs", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = Run(FineTune.load(arguments.contract), arguments.runs or temporary)
        evidence = advance(run, started=lambda stage, skipped: print(f"{stage} …", flush=True))
    predicted = evidence["plan"]["seconds"]
    measured = {name: entry["seconds"] for name, entry in evidence["manifest"]["stages"].items()}
    print(f"\n{platform.machine()}, {predicted['rate_gflops']:.0f} GFLOP/s in NumPy float32")
    print(f"{'stage':<12}{'predicted s':>12}{'measured s':>12}{'ratio':>8}")
    for stage in measured:
        if stage in predicted:
            row(stage, predicted[stage], measured[stage])
    row("total", predicted["total"], sum(measured.values()))


def row(name: str, predicted: float, measured: float) -> None:
    ratio = predicted / measured if measured else float("nan")
    print(f"{name:<12}{predicted:>12.1f}{measured:>12.1f}{ratio:>8.2f}")


if __name__ == "__main__":
    main()
