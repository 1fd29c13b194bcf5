"""C8: the spectra of updates, beside forming them and beside torch's decompositions.

    python benchmarks/spectra.py                                    tables
    python benchmarks/spectra.py --json benchmarks/results/spectra.json

LoRA: the exact singular values of a 4096 × 14336 product from its factors. Peers form B A, and
take its first singular values by `torch.svd_lowrank` (niter 2).

Dense: the first 16 and 64 directions of a 4096 × 4096 update in float32, whose singular values are
known: a power law i^-0.7, with and without 16 planted directions. Peers: `torch.svd_lowrank` at
several widths, of which those that reach our error count, and `torch.linalg.svd`. "off" is how much
larger the error is than that of the best matrix of that rank.

Bound: 200 random 512 × 384 matrices of four kinds; in how many the certified bound holds.

Adapter: all 224 modules of an 8B model's LoRA of rank 64, read from a file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Contender, interleaved, machine, require_quiet
from safetensors.torch import save_file
from torch import Tensor

from tunemath.space import factor_singular_values, lora_factors, low_rank

SIDE = 4096
WIDTHS = {16: (24, 28, 32, 40), 64: (72, 96, 104, 112, 128)}


def medians(runs: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, float]:
    """Return each one's median milliseconds."""
    contenders = [Contender(name, run) for name, run in runs.items()]
    taken = interleaved(contenders, repetitions, set())
    return {name: 1e3 * statistics.median(each) for name, each in taken.items()}


def lora(rank: int, repetitions: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rank, 14336, generator=generator)
    b = torch.randn(SIDE, rank, generator=generator)
    ours = factor_singular_values(a, b).double()
    exact = torch.linalg.svdvals(
        torch.linalg.qr(b.double())[1] @ torch.linalg.qr(a.double().T)[1].T
    )
    error = float(((ours - exact) / exact).abs().max())
    assert error < 1e-6, error
    return {
        "rank": rank,
        "relative_error": error,
        "ms": medians(
            {
                "tunemath": lambda: factor_singular_values(a, b),
                "form B A": lambda: b @ a,
                "form B A, svd_lowrank": lambda: torch.svd_lowrank(b @ a, q=rank + 8, niter=2),
            },
            repetitions,
        ),
    }


def orthogonal(side: int, generator: torch.Generator) -> Tensor:
    normal = torch.randn(side, side, dtype=torch.float64, generator=generator)
    return torch.linalg.qr(normal)[0]


def dense(repetitions: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    u, v = orthogonal(SIDE, generator), orthogonal(SIDE, generator)
    i = torch.arange(1, SIDE + 1, dtype=torch.float64)
    spectra = {"power law": i**-0.7, "power law, 16 planted": torch.where(i <= 16, 3.0, i**-0.7)}
    found = []
    for kind, values in spectra.items():
        exact = (u * values) @ v.T
        update = exact.float()
        for rank, widths in WIDTHS.items():
            best = float((values[rank:] ** 2).sum().sqrt())

            def off(
                left: Tensor, right: Tensor, exact: Tensor = exact, best: float = best
            ) -> float:
                return float((exact - left.double() @ right.double()).norm()) / best - 1

            fit = low_rank(update, rank)
            true = (1 + off(fit.left, fit.right)) * best / float(values.norm())
            assert true <= fit.bound
            offs = {"tunemath, 4 passes": off(fit.left, fit.right)}
            runs: dict[str, Callable[[], Any]] = {
                "tunemath, 4 passes": lambda update=update, rank=rank: low_rank(update, rank)
            }
            for q in widths:
                name = f"svd_lowrank, q {q}, niter 2"
                torch.manual_seed(0)
                left, s, right = torch.svd_lowrank(update, q=q, niter=2)
                offs[name] = off(left[:, :rank] * s[:rank], right[:, :rank].T)
                runs[name] = lambda update=update, q=q: torch.svd_lowrank(update, q=q, niter=2)
            ms = medians(runs, repetitions)
            if kind == "power law" and rank == 16:
                start = time.perf_counter()
                torch.linalg.svd(update)
                ms["torch.linalg.svd"] = 1e3 * (time.perf_counter() - start)
                offs["torch.linalg.svd"] = 0.0
            found.append({"update": kind, "rank": rank, "ms": ms, "off": offs, "bound": fit.bound})
    return found


def bounds(trials: int = 200) -> dict[str, Any]:
    kinds = ("power law", "planted rank", "flat", "one outlier")
    held, tightest = dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0.0)
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        kind = kinds[trial % len(kinds)]
        u, v = (np.linalg.qr(rng.normal(size=(side, 384)))[0] for side in (512, 384))
        i = np.arange(1.0, 385)
        values = {
            "power law": i ** -rng.uniform(0.3, 2),
            "planted rank": np.where(i <= rng.integers(1, 20), 1.0, rng.choice((0.0, 1e-4, 1e-2))),
            "flat": np.ones(384),
            "one outlier": np.where(i == 1, 10.0 ** rng.integers(1, 6), 1.0),
        }[kind]
        matrix = ((u * values) @ v.T).astype(np.float32)
        fit = low_rank(matrix, int(rng.integers(1, 24)), exact=False, seed=trial)
        exact = matrix.astype(np.float64)
        left, right = (np.asarray(f).astype(np.float64) for f in (fit.left, fit.right))
        error = np.linalg.norm(exact - left @ right) / np.linalg.norm(exact)
        held[kind] += int(error <= fit.bound)
        tightest[kind] = max(tightest[kind], fit.bound - float(error))
    return {
        "trials": trials,
        "held": {kind: int(count) for kind, count in held.items()},
        "largest_slack": tightest,
    }


def adapter() -> dict[str, Any]:
    """Return the seconds for the spectra of an 8B model's adapter, reading included."""
    shapes = {
        "self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (1024, 4096),
        "self_attn.v_proj": (1024, 4096), "self_attn.o_proj": (4096, 4096),
        "mlp.gate_proj": (14336, 4096), "mlp.up_proj": (14336, 4096),
        "mlp.down_proj": (4096, 14336),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder, tensors = Path(name), {}
        for layer in range(32):
            for module, (rows, columns) in shapes.items():
                key = f"base_model.model.model.layers.{layer}.{module}"
                tensors[f"{key}.lora_A.weight"] = torch.randn(64, columns)
                tensors[f"{key}.lora_B.weight"] = torch.randn(rows, 64)
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 64, "lora_alpha": 64, "target_modules": "all-linear"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        start = time.perf_counter()
        modules = [factors.singular_values() for factors in lora_factors(folder)]
        return {"modules": len(modules), "rank": 64, "seconds": time.perf_counter() - start}


def show(measured: dict[str, Any]) -> None:
    for case in measured["lora"]:
        ours = case["ms"]["tunemath"]
        print(f"\nLoRA 4096 × 14336, rank {case['rank']}: error {case['relative_error']:.0e}")
        for name, ms in case["ms"].items():
            print(f"  {name:28} {ms:10.2f} ms {ms / ours:8.0f} ×")
    for case in measured["dense"]:
        ours = case["ms"]["tunemath, 4 passes"]
        print(f"\n4096 × 4096, {case['update']}, rank {case['rank']}")
        for name, ms in case["ms"].items():
            off = 100 * case["off"][name]
            print(f"  {name:28} {ms:10.1f} ms {ms / ours:8.2f} ×   off by {off:.3f} %")
    bound, whole = measured["bound"], measured["adapter"]
    print(f"\nThe bound holds in {sum(bound['held'].values())} of {bound['trials']} trials")
    print(f"{whole['modules']} modules of rank {whole['rank']}: {whole['seconds']:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reps", type=int, default=9, help="rounds (9)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    require_quiet()
    measured = {
        "machine": machine(),
        "lora": [lora(rank, arguments.reps) for rank in (16, 64)],
        "dense": dense(arguments.reps),
        "bound": bounds(),
        "adapter": adapter(),
    }
    show(measured)
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
