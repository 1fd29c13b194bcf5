"""Merging a sharded checkpoint: peak memory and time, beside PEFT's merge_and_unload.

    python benchmarks/merging.py --json benchmarks/results/merging.json

The base is a Llama of random bfloat16 weights, written in shards: 16 layers of width 2,048 with
8 of 32 heads for keys and values, 0.73 billion parameters; the adapter has rank 16 in all linear
layers. Each contender runs in a process of its own and ends with a folder that transformers loads.
Memory is anonymous memory above the level after imports, sampled each millisecond; mapped files,
which the system may drop, don't count.

tunemath's figures include its proof: the product is read back, and its logits compared with those
of base and adapter. PEFT has none: load, merge_and_unload, save_pretrained.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import in_its_own_process, machine, peak_anonymous, require_quiet
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from tunemath.runner.merging import MergeOptions, merge_update
from tunemath.runner.quiet import quiet_libraries
from tunemath.runner.resolve import ResolvedModel

CONFIG = LlamaConfig(
    hidden_size=2048, intermediate_size=5632, num_hidden_layers=16, num_attention_heads=32,
    num_key_value_heads=8, vocab_size=4096, tie_word_embeddings=True, dtype="bfloat16",
)  # fmt: skip
LARGEST_MB = 2048 * 5632 * 4 / 1e6
CONTENDERS = ("tunemath", "tunemath, no proof of logits", "PEFT")


def write(folder: Path) -> None:
    """Write base and adapter, seeded."""
    torch.manual_seed(0)
    with quiet_libraries():
        base = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16)
        base.save_pretrained(folder / "base", max_shard_size="200MB")
        options = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
        model = get_peft_model(base, options, autocast_adapter_dtype=False)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=1e-2)
        model.save_pretrained(folder / "adapter")


def merge(who: str, folder: Path, out: Path) -> None:
    if who == "PEFT":
        with quiet_libraries():
            base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
            merged = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
            merged.save_pretrained(out, max_shard_size="200MB")
        return
    base = ResolvedModel("base", folder / "base", None, None, False)
    merge_update(base, folder / "adapter", out, MergeOptions(probe=who == "tunemath"))


def one(who: str, folder: str) -> dict[str, float]:
    """Return seconds and peak memory of one merge, in this process."""
    small = torch.randn(64, 64)
    torch.linalg.svd(small @ small)  # libraries allocate at their first use
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        peak = peak_anonymous(lambda: merge(who, Path(folder), Path(out, "merged")))
        return {"seconds": time.perf_counter() - start, "MB": peak}


def main() -> None:
    if "--one" in sys.argv:
        print(json.dumps(one(*sys.argv[2:4])))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reps", type=int, default=3, help="rounds (3)")
    parser.add_argument("--anyway", action="store_true", help="do not wait for a quiet machine")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    if not arguments.anyway:
        require_quiet()
    rounds: dict[str, list[dict[str, float]]] = {who: [] for who in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        stored = sum(path.stat().st_size for path in Path(folder, "base").glob("*.safetensors"))
        for _ in range(arguments.reps):
            for who in CONTENDERS:
                rounds[who].append(in_its_own_process(__file__, "--one", who, folder))
    figures: dict[str, Any] = {
        "machine": machine(),
        "model_MB": stored / 1e6,
        "bound_MB": 3 * LARGEST_MB + 200,
        "contenders": {
            who: {
                "seconds": statistics.median(each["seconds"] for each in found),
                "MB": max(each["MB"] for each in found),
            }
            for who, found in rounds.items()
        },
    }
    print(f"{figures['model_MB']:.0f} MB on disk; bound {figures['bound_MB']:.0f} MB")
    for who, each in figures["contenders"].items():
        print(f"{who:30} {each['seconds']:6.1f} s {each['MB']:8.0f} MB")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
