"""Predicted memory of a training step beside the bytes that torch allocates in it.

    python benchmarks/memory.py [CASE …] [--json FILE] [--markdown FILE] [--trace]

Each case builds a model of 50 M parameters or more with random weights, takes two optimizer steps
as `tunemath run` does, and counts every allocation of the second by torch's own profiler. The
prediction knows the configuration alone. With --trace it comes from fake tensors where a closed
form exists too. One process a case, so that none sees another's memory; a JSON file that is there
keeps its other cases.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 576,
    "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}  # fmt: skip
WIDE = {
    **LLAMA, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6,
    "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 32000,
    "tie_word_embeddings": False,
}  # fmt: skip
DEEP = {
    **LLAMA, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 16,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 32000,
}  # fmt: skip
QWEN2 = {**DEEP, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
QWEN3 = {**DEEP, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 128}
MISTRAL = {**DEEP, "model_type": "mistral", "architectures": ["MistralForCausalLM"],
           "sliding_window": None}  # fmt: skip
PHI3 = {
    **DEEP, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GEMMA2 = {
    **DEEP, "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"], "head_dim": 64,
    "query_pre_attn_scalar": 64, "sliding_window": 4096, "tie_word_embeddings": True,
}  # fmt: skip
OLMO2 = {**DEEP, "model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]}
GPT2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
NEOX = {
    "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "hidden_size": 512,
    "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8,
    "vocab_size": 50304, "max_position_embeddings": 2048,
}  # fmt: skip
QWEN3_MOE = {
    **QWEN3, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"],
    "num_hidden_layers": 8, "moe_intermediate_size": 768, "num_experts": 8,
    "num_experts_per_tok": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    config: dict[str, Any]
    method: str = "lora"
    settings: dict[str, Any] = field(default_factory=dict)
    rows: int = 4
    """Rows, or pairs of DPO."""
    tokens: int = 256
    share: float = 0.3
    """The supervised part of a row."""
    objective: str = "sft"
    accumulation: int = 1
    checkpointing: bool = False
    attention: str = "sdpa"
    optimizer: str = "adamw"


CASES = {
    "lora": Case(LLAMA),
    "lora-long": Case(LLAMA, rows=1, tokens=1024),
    "lora-r128": Case(LLAMA, settings={"rank": 128}, rows=8, tokens=128),
    "lora-qv": Case(LLAMA, settings={"targets": ["q_proj", "v_proj"]}),
    "lora-dpo": Case(LLAMA, objective="dpo", rows=2),
    "lora-checkpointing": Case(LLAMA, checkpointing=True, rows=8),
    "lora-eager": Case(LLAMA, attention="eager", rows=2, tokens=512),
    "lora-accumulated": Case(WIDE, accumulation=2, settings={"rank": 64}),
    "dora": Case(LLAMA, "dora"),
    "full": Case(LLAMA, "full"),
    "full-short": Case(LLAMA, "full", rows=2, tokens=64),
    "full-dpo": Case(LLAMA, "full", objective="dpo", rows=2, tokens=128),
    "full-checkpointing": Case(WIDE, "full", checkpointing=True, rows=8),
    "full-untied": Case(WIDE, "full", rows=4),
    "full-accumulated": Case(WIDE, "full", accumulation=2),
    "full-adafactor": Case(WIDE, "full", optimizer="adafactor", rows=2),
    "full-sgd": Case(WIDE, "full", optimizer="sgd", rows=8),
    "last-layers": Case(LLAMA, "last_layers", {"layers": 4}, rows=8),
    "layernorm": Case(LLAMA, "layernorm"),
    "bitfit-qwen2": Case(QWEN2, "bitfit", rows=8),
    "pfeiffer": Case(LLAMA, "adapter"),
    "houlsby": Case(WIDE, "adapter", {"style": "houlsby"}, rows=8),
    "prefix": Case(LLAMA, "prefix"),
    "prefix-dpo": Case(DEEP, "prefix", {"length": 64}, objective="dpo"),
    "prompt": Case(LLAMA, "prompt"),
    "qwen3": Case(QWEN3, rows=8),
    "mistral": Case(MISTRAL, rows=8, settings={"rank": 32}),
    "phi3": Case(PHI3, rows=8),
    "gemma2": Case(GEMMA2, rows=4, attention="eager"),
    "olmo2": Case(OLMO2, rows=8),
    "olmo2-full": Case(OLMO2, "full"),
    "gpt2": Case(GPT2, settings={"targets": ["c_attn", "c_proj", "c_fc"]}),
    "gpt2-full": Case(GPT2, "full"),
    "gpt-neox": Case(NEOX, "full", rows=8),
    "qwen3-moe": Case(QWEN3_MOE, rows=8),
    "qwen3-moe-full": Case(QWEN3_MOE, "full"),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = [name for name in arguments.cases if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; known: {', '.join(CASES)}")
    if arguments.one:
        print(json.dumps(measure(CASES[arguments.cases[0]], arguments.trace)))
        return
    known = {}
    if arguments.json and arguments.json.exists():
        known = {row["case"]: row for row in json.loads(arguments.json.read_text("utf-8"))}
    for name in arguments.cases or CASES:
        command = [sys.executable, __file__, "--one", name]
        command += ["--trace"] if arguments.trace else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1:]}", flush=True)
            continue
        known[name] = {"case": name, **json.loads(done.stdout.splitlines()[-1])}
        print(line(known[name]), flush=True)
    rows = [known[name] for name in CASES if name in known]
    text = page(rows)
    print(text.split("\n\n")[-1])
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(text, "utf-8")


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['case']:<20}{row['predicted'] / 2**20:>9.0f} MiB predicted "
        f"{row['measured'] / 2**20:>9.0f} measured {100 * error(row):>+7.1f} %  "
        f"{row['moment']} ({row['source']})"
    )


def error(row: dict[str, Any]) -> float:
    return row["predicted"] / row["measured"] - 1


def page(rows: list[dict[str, Any]]) -> str:
    """Return the table and its summary as Markdown."""
    heads = ("Case", "Parameters", "Rows × tokens", "Predicted MiB", "Measured MiB", "Error",
             "Highest in", "Activations")  # fmt: skip
    table = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = (
            row["case"], f"{row['parameters'] / 1e6:.0f} M", f"{row['rows']} × {row['tokens']}",
            f"{row['predicted'] / 2**20:.0f}", f"{row['measured'] / 2**20:.0f}",
            f"{100 * error(row):+.1f} %", row["moment"], row["source"],
        )  # fmt: skip
        table.append("| " + " | ".join(cells) + " |")
    off = [abs(error(row)) for row in rows]
    exact = sum(row["exact_predicted"] == row["exact_measured"] for row in rows)
    summary = (
        f"{len(rows)} settings: median error {100 * median(off):.1f} %, worst "
        f"{100 * max(off):.1f} %; weights, gradients and optimizer state are equal to the byte in "
        f"{exact} of {len(rows)}."
        if rows
        else "No settings."
    )
    return "\n".join(
        [
            "# Memory: predicted beside allocated",
            "",
            "`python benchmarks/memory.py --markdown docs/budget/memory-benchmark.md` builds each",
            "model with random weights, takes two optimizer steps, and counts every allocation of",
            "the second with torch's profiler; the prediction is from the configuration alone.",
            f"{platform.system()}, float32.",
            "",
            *table,
            "",
            summary,
            "",
        ]
    )


# --- one case


def measure(case: Case, trace: bool) -> dict[str, Any]:
    """Return predicted and measured bytes of one case."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    from tunemath.space import read_space

    space = read_space({"method": case.method, **case.settings})
    predicted, source = predict(case, space, trace)
    torch.manual_seed(0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step, model = prepared(case, space)
        for number in range(2):
            with record_function(f"step {number}"):
                step()
    events = profiler.profiler.kineto_results.events()
    marks = {e.name(): (e.start_ns(), e.end_ns()) for e in events if e.name().startswith("step ")}
    start, end = marks["step 1"]
    now = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        if start <= event.start_ns() <= end:
            peak = max(peak, now)
    exact = ("base weights", "added weights", "gradients", "optimizer state")
    return {
        "rows": case.rows * (2 if case.objective == "dpo" else 1),
        "tokens": case.tokens,
        "parameters": sum(p.numel() for p in model.parameters()),
        "predicted": predicted.peak,
        "measured": peak,
        "moment": predicted.moment,
        "source": source,
        "terms": {term.name: [term.bytes, term.at_peak] for term in predicted.terms},
        "exact_predicted": sum(t.bytes for t in predicted.terms if t.name in exact),
        "exact_measured": step.held(),
    }


def predict(case: Case, space: Any, trace: bool) -> tuple[Any, str]:
    """Return the memory that is foretold from the configuration, and how."""
    from tunemath.budget import Step, step_memory
    from tunemath.pipeline.costs import decoder_of, held_of
    from tunemath.space import UNFREEZING, ledger_of
    from tunemath.space.blueprint.config import blueprint_of_config

    def traced() -> Any:
        from tunemath.runner.tracing import trace_curves

        return trace_curves(
            case.config, space, rows, case.tokens,
            checkpointing=case.checkpointing, attention=case.attention,
        )  # fmt: skip

    dpo = case.objective == "dpo"
    rows = case.rows * (2 if dpo else 1)
    ledger = ledger_of(blueprint_of_config(case.config), space)
    attention = "eager" if case.attention == "eager" else "fused"
    options: dict[str, Any] = {"attention": attention, "checkpointing": case.checkpointing}
    closed = decoder_of(ledger.blueprint, ledger.change, **options) is not None and not trace
    held = held_of(ledger, **options, traced=traced, trace=trace)
    step = Step(
        rows=rows,
        tokens=case.tokens,
        supervised=supervised(case),
        accumulation=case.accumulation,
        optimizer=case.optimizer,
        reference=("copy" if case.method in UNFREEZING else "switched off") if dpo else "none",
    )
    return step_memory(held, step), "closed form" if closed else "traced"


def supervised(case: Case) -> int:
    return max(1, round(case.share * (case.tokens - 1)))


def prepared(case: Case, space: Any) -> tuple[Any, Any]:
    """Return one optimizer step as a function, and the model."""
    import tempfile

    import torch
    from transformers import TrainingArguments
    from transformers.optimization import Adafactor

    from tunemath.objective.record import Objective
    from tunemath.runner.blueprints import build_from_config
    from tunemath.runner.models import attach_adapter
    from tunemath.runner.trainer import Rows, TuneTrainer
    from tunemath.runner.unfrozen import UnfrozenModel

    base = build_from_config(case.config, None, "cpu")
    base.set_attn_implementation(case.attention)
    base.eval()
    model = attach_adapter(base, space, 0)
    if isinstance(model, UnfrozenModel) and case.objective == "dpo":
        model.keep_base()
    vocab = base.get_output_embeddings().weight.shape[0]
    ids = torch.randint(3, vocab, (2, case.rows, case.tokens))
    answers = torch.arange(case.tokens) >= case.tokens - supervised(case)
    sides = 2 if case.objective == "dpo" else 1
    examples = [
        tuple((ids[side, row].tolist(), answers.tolist()) for side in range(sides))
        for row in range(case.rows)
    ]
    trainer = TuneTrainer(
        objective=Objective(kind=case.objective), pad=0, witness=None, model=model,
        args=TrainingArguments(output_dir=tempfile.gettempdir(), use_cpu=True, report_to="none"),
        train_dataset=Rows(examples, range(len(examples))),
    )  # fmt: skip
    base.config.use_cache = False
    if case.checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = trainer.collated(examples)
    weight = case.accumulation * trainer.weight(batch)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizers = {
        "adamw": lambda: torch.optim.AdamW(trained, lr=1e-5),
        "sgd": lambda: torch.optim.SGD(trained, lr=1e-5),
        "adafactor": lambda: Adafactor(
            trained, lr=1e-5, scale_parameter=False, relative_step=False
        ),
    }
    optimizer = optimizers[case.optimizer]()
    model.train()

    def step() -> None:
        for _ in range(case.accumulation):
            loss = trainer.compute_loss(model, batch, num_items_in_batch=weight)
            loss.backward()
            del loss
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def held() -> int:
        """Return the bytes of weights, gradients and optimizer state, tensor by tensor."""
        seen = {p.data_ptr(): p.nbytes for p in model.parameters()}
        state = sum(
            value.nbytes
            for values in optimizer.state.values()
            for value in values.values()
            if isinstance(value, torch.Tensor)
        )
        return sum(seen.values()) + sum(p.nbytes for p in trained) + state

    step.held = held  # type: ignore[attr-defined]
    return step, model


if __name__ == "__main__":
    main()
