"""Delta algebra: extraction beside mergekit's, resizing beside kohya's algorithm, and its memory.

    python benchmarks/extraction.py BASE TUNED ADAPTER
    python benchmarks/extraction.py BASE TUNED ADAPTER --mergekit venv/bin/mergekit-extract-lora \\
        --json benchmarks/results/extraction.json

Extract: whole commands, from start to the adapter on disk, of the linear layers' matrices; errors
are measured in float64 from the files that each wrote. mergekit runs in an environment of its own.
With logits, the adapter is read back too, and run beside both models; mergekit has nothing of it.

Resize: all modules of ADAPTER to half its rank. kohya's is resize_lora.py's published algorithm:
B A is formed, decomposed by torch.linalg.svd, and cut.

Memory: peak anonymous memory above the level after imports, sampled each millisecond, for a
checkpoint of eighteen 2048 × 4096 matrices (604 MB in float32) and one of 16 of 4096 × 4096.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import in_its_own_process, machine, peak_anonymous, require_quiet
from safetensors.torch import load_file, save_file

from tunemath.space import lora_factors
from tunemath.space.weights.combine import combine
from tunemath.space.weights.extract import extract
from tunemath.space.weights.mixing import Mix
from tunemath.space.weights.ranks import RankChoice
from tunemath.space.weights.resize import resize

TUNEMATH = (sys.executable, "-c", "from tunemath.cli import main; main()")
SHAPES = {"2048 × 4096": (2048, 4096, 18), "4096 × 4096": (4096, 4096, 16)}
WORKS = ("extract, rank 16", "combine, task", "combine, ties")


def extraction(
    base: Path, tuned: Path, mergekit: str | None, rank: int, rounds: int
) -> dict[str, Any]:
    """Return seconds and relative errors of whole commands, interleaved."""
    pair = ["--base-model", base, "--model", tuned]
    ours = [*TUNEMATH, "extract", base, tuned, "--rank", rank, "--rest", "none"]
    commands = {"tunemath": [*ours, "--no-probe"], "tunemath, with logits": ours}
    if mergekit is not None:
        linear = ["-e", "embed_tokens|lm_head|norm", "--quiet"]
        commands["mergekit"] = [mergekit, *pair, "--max-rank", rank, *linear, "--out-path"]
    seconds: dict[str, list[float]] = {who: [] for who in commands}
    errors = {}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(rounds):
            for who, command in commands.items():
                out = Path(name, f"{who}{turn}")
                start = time.perf_counter()
                done = subprocess.run(
                    [str(each) for each in (*command, out)], capture_output=True, check=False
                )
                seconds[who].append(time.perf_counter() - start)
                # mergekit's last step, the model card, asks the hub, which may be out of reach.
                assert (out / "adapter_model.safetensors").is_file(), done.stderr[-2000:]
                errors[who] = error_of(out, base, tuned)
    return {
        "rank": rank,
        "seconds": {who: statistics.median(each) for who, each in seconds.items()},
        "relative_error": errors,
        "least": least_error(base, tuned, rank),
    }


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    return found


def error_of(adapter: Path, base: Path, tuned: Path) -> float:
    """Return ‖ΔW − s·B A‖ / ‖ΔW‖ over all modules, in float64."""
    before, after = weights_of(base), weights_of(tuned)
    total = lost = 0.0
    for each in lora_factors(adapter):
        name = f"{each.name}.weight"
        delta = after[name].double() - before[name].double()
        product = each.scale * torch.tensor(each.B).double() @ torch.tensor(each.A).double()
        total += float(delta.square().sum())
        lost += float((delta - product).square().sum())
    return math.sqrt(lost / total)


def least_error(base: Path, tuned: Path, rank: int) -> float:
    """Return the least error of the rank, from all singular values of every linear layer."""
    before, after = weights_of(base), weights_of(tuned)
    total = rest = 0.0
    for name, tensor in before.items():
        if re.search(r"_proj\.weight$", name):
            values = torch.linalg.svdvals(after[name].double() - tensor.double()).square()
            total, rest = total + float(values.sum()), rest + float(values[rank:].sum())
    return math.sqrt(rest / total)


def kohya_resize(adapter: Path, rank: int) -> float:
    """Cut every module as resize_lora.py does; return the relative error over all."""
    total = lost = 0.0
    for each in lora_factors(adapter):
        delta = each.scale * torch.tensor(each.B) @ torch.tensor(each.A)
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        cut = (u[:, :rank] * s[:rank]) @ vh[:rank]
        total += float(delta.double().square().sum())
        lost += float((delta - cut).double().square().sum())
    return math.sqrt(lost / total)


def resizing(adapter: Path, rounds: int) -> dict[str, Any]:
    rank = max(1, next(iter(lora_factors(adapter))).rank // 2)
    seconds: dict[str, list[float]] = {"tunemath": [], "kohya": []}
    errors = {}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(rounds):
            out = Path(name, f"{turn}")
            out.mkdir()
            start = time.perf_counter()
            errors["tunemath"] = resize(adapter, out, RankChoice("rank", rank)).relative_error
            seconds["tunemath"].append(time.perf_counter() - start)
            if turn < 1:  # takes minutes
                start = time.perf_counter()
                errors["kohya"] = kohya_resize(adapter, rank)
                seconds["kohya"].append(time.perf_counter() - start)
    medians = {who: statistics.median(each) for who, each in seconds.items()}
    return {"rank": rank, "seconds": medians, "relative_error": errors}


def synthetic(folder: Path, seed: int, rows: int, columns: int, count: int) -> Path:
    """Write a checkpoint of llama's names in files of two matrices each."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    names = {}
    for place in range(0, count, 2):
        file = f"model-{place // 2 + 1:05d}-of-{count // 2:05d}.safetensors"
        tensors = {
            f"model.layers.{layer}.mlp.up_proj.weight": torch.randn(
                rows, columns, generator=generator
            )
            for layer in (place, place + 1)
        }
        save_file(tensors, folder / file)
        names.update(dict.fromkeys(tensors, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


def memory(work: str, shape: str) -> dict[str, Any]:
    """Return the peak of one piece of work, in this process."""
    rows, columns, count = SHAPES[shape]
    with tempfile.TemporaryDirectory() as name:
        base, one, two = (
            synthetic(Path(name, each), seed, rows, columns, count)
            for seed, each in enumerate(("base", "one", "two"))
        )
        (out := Path(name, "out")).mkdir()
        low = torch.randn(64, 8) @ torch.randn(8, 64)
        torch.linalg.svd(low)  # libraries allocate at their first use
        mixes = {
            "combine, task": Mix("task", (1.0, 0.5)),
            "combine, ties": Mix("ties", (1.0, 0.5), density=0.2),
        }
        run = (
            (lambda: combine([one, two], out, mixes[work], base=base))
            if work in mixes
            else (lambda: extract(base, one, out, RankChoice("rank", 16)))
        )
        largest = rows * columns * 4 / 1e6
        found = {"MB": peak_anonymous(run), "largest_MB": largest, "model_MB": largest * count}
        return {**found, "bound_MB": 3 * largest + 200}


def show(measured: dict[str, Any]) -> None:
    for case in measured["extract"]:
        print(f"\nextract, rank {case['rank']}; least error {case['least']:.6f}")
        for who, seconds in case["seconds"].items():
            over = case["relative_error"][who] / case["least"]
            print(f"  {who:22} {seconds:8.1f} s   {over:.6f} × the least error")
    case = measured["resize"]
    print(f"\nresize to rank {case['rank']}")
    for who, seconds in case["seconds"].items():
        print(f"  {who:22} {seconds:8.2f} s   relative error {case['relative_error'][who]:.6f}")
    print("\nanonymous memory above imports")
    for work, shapes in measured["memory"].items():
        for shape, each in shapes.items():
            print(
                f"  {work:18} {shape:12} {each['MB']:6.0f} MB of at most {each['bound_MB']:.0f}; "
                f"model {each['model_MB']:.0f} MB"
            )


def main() -> None:
    if "--one" in sys.argv:
        print(json.dumps(memory(*sys.argv[2:4])))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("tuned", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--mergekit", help="the command mergekit-extract-lora")
    parser.add_argument("--reps", type=int, default=3, help="rounds (3)")
    parser.add_argument("--anyway", action="store_true", help="do not wait for a quiet machine")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    if not arguments.anyway:
        require_quiet()
    models = arguments.base, arguments.tuned, arguments.mergekit
    measured = {
        "machine": machine(),
        "extract": [extraction(*models, rank, arguments.reps) for rank in (4, 16, 64)],
        "resize": resizing(arguments.adapter, arguments.reps),
        "memory": {
            work: {shape: in_its_own_process(__file__, "--one", work, shape) for shape in SHAPES}
            for work in WORKS
        },
    }
    show(measured)
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
