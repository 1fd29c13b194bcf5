"""Predicted seconds beside measured ones, stage by stage, for a contract.

    python benchmarks/stages.py [CONTRACT] [--runs DIR]
    python benchmarks/stages.py [CONTRACT] --fixed

Runs whatever stages of the contract have not run yet (all of them in an empty --runs folder, which
is the default: a temporary one), then prints both figures and their ratio. Run it on an idle
machine: the prediction starts from a matrix-product rate that is measured when the plan is made.

With --fixed, the commands `train` and `artefact` run as processes of their own, from imports to
exit, and what they take beside optimizer steps is printed: the seconds that a run of no steps would
have, and the memory at its highest.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tunemath import FineTune, Run, advance

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "contract", nargs="?", type=Path, default=ROOT / "examples" / "dates" / "sft.yaml"
    )
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--fixed", action="store_true")
    parser.add_argument("--timed", metavar="STAGE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.timed:
        timed(arguments.contract, arguments.runs, arguments.timed)
    elif arguments.fixed:
        fixed(arguments.contract)
    else:
        compare(arguments.contract, arguments.runs)


def compare(contract: Path, runs: Path | None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        run = Run(FineTune.load(contract), runs or temporary)
        evidence = advance(run, started=lambda stage, skipped: print(f"{stage} …", flush=True))
    predicted = evidence["plan"]["seconds"]
    measured = {name: entry["seconds"] for name, entry in evidence["manifest"]["stages"].items()}
    print(f"\n{platform.machine()}, {predicted['rate_gflops']:.0f} GFLOP/s in NumPy float32")
    print(f"{'stage':<12}{'predicted s':>12}{'measured s':>12}{'ratio':>8}")
    for stage in measured:
        if stage in predicted:
            row(stage, predicted[stage], measured[stage])
    row("total", predicted["total"], sum(measured.values()))


def timed(contract: Path, runs: Path, stage: str) -> None:
    """Run up to a stage; print the seconds of optimizer steps, wall and processor."""
    from tunemath.runner.trainer import TuneTrainer

    spent = [0.0, 0.0]
    step, optimize = TuneTrainer.training_step, TuneTrainer.create_optimizer
    training = TuneTrainer.train

    def train(self, *args, **kwargs):
        TuneTrainer.training_step = counted(step, spent)
        try:
            return training(self, *args, **kwargs)
        finally:
            TuneTrainer.training_step = step

    def create_optimizer(self):
        optimizer = optimize(self)
        optimizer.step = counted(optimizer.step, spent)
        return optimizer

    TuneTrainer.train, TuneTrainer.create_optimizer = train, create_optimizer
    advance(Run(FineTune.load(contract), runs), stage)
    print(*spent)


def counted(function, spent):
    def timed_call(*args, **kwargs):
        wall, processor = time.perf_counter(), time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[0] += time.perf_counter() - wall
            spent[1] += time.process_time() - processor

    return timed_call


def fixed(contract: Path) -> None:
    print(f"{'command':<12}{'wall s':>10}{'steps s':>10}{'beside s':>10}", end="")
    print(f"{'processor s':>13}{'steps s':>10}{'beside s':>10}{'peak MiB':>10}")
    sums = [0.0] * 4
    with tempfile.TemporaryDirectory() as runs:
        for stage in ("mask", "train", "artefact"):
            command = [sys.executable, __file__, str(contract), "--runs", runs, "--timed", stage]
            started = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            output = process.stdout.read()
            _, status, used = os.wait4(process.pid, 0)
            wall, processor = time.perf_counter() - started, used.ru_utime + used.ru_stime
            if status:
                sys.exit(f"{stage} failed")
            if stage == "mask":
                continue  # before the clock: what is measured are train and the proof
            step_wall, step_processor = map(float, output.split())
            figures = [wall, step_wall, processor, step_processor]
            sums = [a + b for a, b in zip(sums, figures, strict=True)]
            line(stage, figures, used.ru_maxrss / 2**10)
    line("both", sums, None)


def line(name: str, figures: list[float], peak: float | None) -> None:
    wall, step_wall, processor, step_processor = figures
    print(f"{name:<12}{wall:>10.1f}{step_wall:>10.1f}{wall - step_wall:>10.1f}", end="")
    print(f"{processor:>13.1f}{step_processor:>10.1f}{processor - step_processor:>10.1f}", end="")
    print("" if peak is None else f"{peak:>10.0f}", flush=True)


def row(name: str, predicted: float, measured: float) -> None:
    ratio = predicted / measured if measured else float("nan")
    print(f"{name:<12}{predicted:>12.1f}{measured:>12.1f}{ratio:>8.2f}")


if __name__ == "__main__":
    main()
