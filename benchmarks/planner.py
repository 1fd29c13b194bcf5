"""C7: counting a 405B LoRA from shapes alone, beside PEFT on the meta device.

    python benchmarks/planner.py                       a table
    python benchmarks/planner.py --json FILE           and the figures as JSON

Every contender is a whole process, interpreter start and imports included, run in turn; the
medians are compared. All must give the same two counts, or nothing is printed. The warm figure is
one plan (targets found, totals summed) in a process that holds the list of modules already.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Llama 3.1 405B, as its config.json has it.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
ADAPTER = {"peft_type": "LORA", "r": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
SHARDS = 191

PEFT = """
import json, sys, torch, transformers, peft
config, adapter = (json.load(open(path)) for path in sys.argv[1:])
adapter.pop("peft_type")
with torch.device("meta"):
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**{k: v for k, v in config.items() if k != "torch_dtype"}))
    model = peft.get_peft_model(model, peft.LoraConfig(**adapter), low_cpu_mem_usage=True)
trainable, total = model.get_nb_trainable_parameters()
print(json.dumps({"trainable": trainable, "total": total}))
"""

WARM = """
import json, statistics, sys, time
from tunemath.space import read_blueprint
from tunemath.space.peft import AdapterConfig, peft_ledger
blueprint, config = read_blueprint(sys.argv[1]), AdapterConfig.read(sys.argv[2])
seconds = []
for _ in range(200):
    start = time.perf_counter()
    ledger = peft_ledger(blueprint, config)
    counts = {"trainable": ledger.trainable, "total": ledger.total}
    seconds.append(time.perf_counter() - start)
print(json.dumps({**counts, "warm_ms": 1e3 * statistics.median(seconds[20:])}))
"""


def write_headers(folder: Path) -> None:
    """Write shards with the model's headers and no data: sparse files of the full length."""
    from tunemath.space import read_blueprint

    (folder / "config.json").write_text(json.dumps(CONFIG))
    blueprint = read_blueprint(folder / "config.json")
    tensors = list(blueprint.tensors())
    places = {}
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        header, end = {}, 0
        for tensor, shape in tensors[shard::SHARDS]:
            size = 2
            for each in shape:
                size *= each
            offsets = [end, end + size]
            header[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": offsets}
            places[tensor], end = name, end + size
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def run(command: list[str]) -> tuple[float, dict[str, Any]]:
    """Return the seconds of a whole process, and the JSON that it printed."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return seconds, json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reps", type=int, default=7, help="runs of each contender (7)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_headers(folder)
        adapter = folder / "adapter_config.json"
        adapter.write_text(json.dumps(ADAPTER))
        config = str(folder / "config.json")
        count = [str(Path(sys.executable).with_name("tunemath")), "count"]
        options = ["--peft-config", str(adapter), "--json"]
        contenders = {
            "tunemath count config.json": [*count, config, *options],
            f"tunemath count, {SHARDS} shards": [*count, name, *options],
            "PEFT on the meta device": [sys.executable, "-c", PEFT, config, str(adapter)],
        }
        seconds: dict[str, list[float]] = {key: [] for key in contenders}
        counts = set()
        for turn in range(arguments.reps + 1):
            for key, command in contenders.items():
                taken, printed = run(command)
                counts.add((printed["trainable"], printed["total"]))
                if turn:  # the first round fills the caches of files and bytecode
                    seconds[key].append(taken)
        _, warm = run([sys.executable, "-c", WARM, config, str(adapter)])
        counts.add((warm["trainable"], warm["total"]))
    if len(counts) != 1:
        raise SystemExit(f"the counts differ: {sorted(counts)}")
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    slowest = medians["PEFT on the meta device"]
    print("| 405B, LoRA r 16 on all linear layers | median s | min s | PEFT / this |")
    print("|---|---|---|---|")
    for key, median in medians.items():
        print(f"| {key} | {median:.3f} | {min(seconds[key]):.3f} | {slowest / median:.1f} |")
    trainable, total = counts.pop()
    print(f"\n{trainable:,} of {total:,} parameters; one warm plan {warm['warm_ms']:.2f} ms")
    if arguments.json:
        figures = {"seconds": seconds, "warm_ms": warm["warm_ms"], "total": total}
        arguments.json.write_text(json.dumps({**figures, "trainable": trainable}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
