"""Predicted memory of a training step beside the bytes that torch allocates in it.

    python benchmarks/memory.py [CASE …] [--json FILE] [--markdown FILE] [--trace]

Each case builds a model with random weights, takes two optimizer steps, and counts every allocation
of the second by torch's own profiler. In float32 the models have 50 M parameters or more and step
as `tunemath run` does; in bfloat16 they are smaller, as a CPU is slow at it, and step as a plain
loop over transformers' own loss does, with all logits. The prediction knows the configuration
alone. With --trace it comes from fake tensors where a closed form exists too. One process a case,
so that none sees another's memory; a JSON file that is there keeps its other cases.
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

# Smaller, for bfloat16.
SMALL = {
    **LLAMA, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 4096,
}  # fmt: skip
SMALL_UNTIED = {**SMALL, "tie_word_embeddings": False}
SMALL_QWEN2 = {**SMALL, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
SMALL_QWEN3 = {**SMALL, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
SMALL_PHI3 = {**PHI3, **SMALL, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}
SMALL_GEMMA2 = {
    **GEMMA2, **SMALL, "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"],
}  # fmt: skip
SMALL_OLMO2 = {**SMALL, "model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]}
SMALL_MOE = {
    **QWEN3_MOE, **SMALL, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"],
    "num_hidden_layers": 4, "moe_intermediate_size": 384,
}  # fmt: skip
SMALL_PHI = {**SMALL, "model_type": "phi", "architectures": ["PhiForCausalLM"]}
SMALL_NEOX = {**NEOX, "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6,
              "vocab_size": 4096}  # fmt: skip
SMALL_GPT2 = {**GPT2, "n_embd": 384, "n_layer": 8, "n_head": 6, "vocab_size": 4096}
ROBERTA = {
    "model_type": "roberta", "architectures": ["RobertaForSequenceClassification"],
    "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "pad_token_id": 1,
    "num_attention_heads": 6, "vocab_size": 4096, "max_position_embeddings": 514,
}  # fmt: skip
TAGGER = {**ROBERTA, "architectures": ["RobertaForTokenClassification"]}
ROBERTA_TARGETS = {"targets": ["query", "value"]}
GPT2_TARGETS = {"targets": ["c_attn", "c_proj", "c_fc"]}


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
    mixing: str = ""
    """How bfloat16 is used: autocast, plain or pure; float32 where empty."""
    masked: bool = False


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
    "half-lora": Case(SMALL, mixing="autocast"),
    "half-lora-plain": Case(SMALL, mixing="plain"),
    "half-lora-pure": Case(SMALL, mixing="pure"),
    "half-lora-qv": Case(SMALL, settings={"targets": ["q_proj", "v_proj"]}, mixing="plain"),
    "half-lora-checkpointing": Case(SMALL, mixing="autocast", checkpointing=True, rows=8),
    "half-lora-eager": Case(SMALL, mixing="autocast", attention="eager"),
    "half-lora-masked": Case(SMALL, mixing="autocast", masked=True),
    "half-dora": Case(SMALL, "dora", mixing="autocast"),
    "half-dora-plain": Case(SMALL, "dora", mixing="plain"),
    "half-full": Case(SMALL, "full", mixing="autocast"),
    "half-full-pure": Case(SMALL, "full", mixing="pure"),
    "half-full-untied": Case(SMALL_UNTIED, "full", mixing="autocast"),
    "half-full-checkpointing": Case(SMALL, "full", mixing="pure", checkpointing=True, rows=8),
    "half-last-layers": Case(SMALL, "last_layers", {"layers": 4}, mixing="pure"),
    "half-layernorm": Case(SMALL, "layernorm", mixing="autocast"),
    "half-prompt": Case(SMALL, "PROMPT_TUNING", {"num_virtual_tokens": 64}, mixing="plain"),
    "half-prefix": Case(SMALL, "PREFIX_TUNING", {"num_virtual_tokens": 64}, mixing="plain"),
    "half-vera": Case(SMALL, "VERA", {"target_modules": ["q_proj", "o_proj"]}, mixing="plain"),
    "half-loha": Case(SMALL, "LOHA", {"target_modules": ["q_proj", "v_proj"]}, mixing="plain"),
    "half-oft": Case(SMALL, "OFT", {"target_modules": ["q_proj", "v_proj"]}, mixing="autocast"),
    "half-ia3": Case(SMALL, "IA3", mixing="autocast"),
    "half-qwen2-bitfit": Case(SMALL_QWEN2, "bitfit", mixing="pure"),
    "half-qwen3": Case(SMALL_QWEN3, mixing="autocast"),
    "half-phi3": Case(SMALL_PHI3, mixing="plain"),
    "half-gemma2": Case(SMALL_GEMMA2, mixing="autocast", attention="eager"),
    "half-olmo2-full": Case(SMALL_OLMO2, "full", mixing="autocast"),
    "half-phi": Case(SMALL_PHI, mixing="autocast"),
    "half-gpt-neox-full": Case(SMALL_NEOX, "full", mixing="pure"),
    "half-gpt2": Case(SMALL_GPT2, settings=GPT2_TARGETS, mixing="autocast"),
    "half-gpt2-full": Case(SMALL_GPT2, "full", mixing="pure"),
    "half-qwen3-moe": Case(SMALL_MOE, mixing="autocast"),
    "half-classifier": Case(ROBERTA, settings=ROBERTA_TARGETS, mixing="autocast"),
    "half-classifier-full": Case(ROBERTA, "full", mixing="autocast"),
    "half-tagger-bitfit": Case(TAGGER, "bitfit", mixing="pure"),
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
        if arguments.json:
            arguments.json.write_text(json.dumps(ordered(known), indent=1) + "\n", "utf-8")
    rows = ordered(known)
    text = page(rows)
    print(text.split("\n\n")[-1])
    if arguments.markdown:
        arguments.markdown.write_text(text, "utf-8")


def ordered(known: dict[str, Any]) -> list[dict[str, Any]]:
    return [known[name] for name in CASES if name in known]


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['case']:<20}{row['predicted'] / 2**20:>9.0f} MiB predicted "
        f"{row['measured'] / 2**20:>9.0f} measured {100 * error(row):>+7.1f} %  "
        f"{row['moment']} ({row['source']})"
    )


def error(row: dict[str, Any]) -> float:
    return row["predicted"] / row["measured"] - 1


def page(rows: list[dict[str, Any]]) -> str:
    """Return the tables and their summaries as Markdown."""
    single = [row for row in rows if not CASES[row["case"]].mixing]
    half = [row for row in rows if CASES[row["case"]].mixing]
    return "\n".join(
        [
            "# Memory: predicted beside allocated",
            "",
            "`python benchmarks/memory.py --markdown docs/budget/memory-benchmark.md` builds each",
            "model with random weights, takes two optimizer steps, and counts every allocation of",
            "the second with torch's profiler; the prediction is from the configuration alone.",
            f"{platform.system()}, on a CPU.",
            "",
            "## float32",
            "",
            "As `tunemath run` steps: with tiles of logits.",
            "",
            *table(single),
            "",
            "## bfloat16",
            "",
            "As a loop over transformers' own loss steps: with all logits. *autocast* has float32",
            "weights where they are trained and casts the products, *plain* has PEFT's float32",
            "adapters and casts nothing, *pure* is bfloat16 throughout. A CPU's autocast leaves",
            "layer norms in bfloat16, which a GPU's does in float32: `--device cuda` foretells",
            "more there, for GPT-2 and the like.",
            "",
            *table(half),
            "",
        ]
    )


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table and its summary."""
    if not rows:
        return ["No settings."]
    heads = ("Case", "Parameters", "Rows × tokens", "Precision", "Predicted MiB", "Measured MiB",
             "Error", "Highest in", "Activations")  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = (
            row["case"], f"{row['parameters'] / 1e6:.0f} M", f"{row['rows']} × {row['tokens']}",
            CASES[row["case"]].mixing or "float32",
            f"{row['predicted'] / 2**20:.0f}", f"{row['measured'] / 2**20:.0f}",
            f"{100 * error(row):+.1f} %", row["moment"], row["source"],
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    off = [abs(error(row)) for row in rows]
    exact = sum(row["exact_predicted"] == row["exact_measured"] for row in rows)
    summary = (
        f"{len(rows)} settings: median error {100 * median(off):.1f} %, worst "
        f"{100 * max(off):.1f} %; weights, gradients and optimizer state are equal to the byte in "
        f"{exact} of {len(rows)}."
    )
    return [*lines, "", summary]


# --- one case


def measure(case: Case, trace: bool) -> dict[str, Any]:
    """Return predicted and measured bytes of one case."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    update = update_of(case)
    predicted, source = predict(case, update, trace)
    torch.manual_seed(0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step, model = (plain if case.mixing else prepared)(case, update)
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


def update_of(case: Case) -> Any:
    """Return the contract's method, or PEFT's configuration where the case has one of its types."""
    from tunemath.space import read_space
    from tunemath.space.blueprint.config import blueprint_of_config
    from tunemath.space.methods import task_of
    from tunemath.space.peft import AdapterConfig

    if case.method.isupper():
        task = task_of(blueprint_of_config(case.config))
        return AdapterConfig(case.method, task_type=task, **case.settings)
    return read_space({"method": case.method, **case.settings})


def predict(case: Case, update: Any, trace: bool) -> tuple[Any, str]:
    """Return the memory that is foretold from the configuration, and how."""
    from tunemath.pipeline.costs import Precision
    from tunemath.pipeline.memory import Scenario
    from tunemath.runner.blueprints import blueprint_from_transformers

    half = {"dtype": "bfloat16", "mixing": case.mixing} if case.mixing else {}
    scenario = Scenario(
        blueprint_from_transformers(case.config),
        update,
        tokens=case.tokens,
        supervised=supervised(case),
        batch=case.rows * case.accumulation,
        micro_batch=case.rows,
        objective=case.objective,  # pyright: ignore[reportArgumentType]
        precision=Precision(**half),  # pyright: ignore[reportArgumentType]
        optimizer=case.optimizer,
        checkpointing=case.checkpointing,
        attention="eager" if case.attention == "eager" else "fused",
        masked=case.masked,
        logits="all" if case.mixing else "tiles",
        trace=trace,
    )
    return scenario.memory, scenario.held.source


def supervised(case: Case) -> int:
    return max(1, round(case.share * (case.tokens - 1)))


def plain(case: Case, update: Any) -> tuple[Any, Any]:
    """Return a step in bfloat16 as a loop over transformers' own loss takes it, and the model."""
    import torch

    from tunemath.runner.blueprints import blueprint_of, build_from_config
    from tunemath.runner.fakes import build_tuned
    from tunemath.space.methods import task_of

    task = task_of(blueprint_of(build_from_config(case.config, None)))
    model = build_tuned(
        case.config, update, task=task, dtype="bfloat16", attention=case.attention,
        mixing=case.mixing,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.config.use_cache = False
    if case.checkpointing:
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(3, 4096, (case.rows, case.tokens))
    inputs = {"input_ids": ids, "labels": ids}
    if task == "SEQ_CLS":
        inputs["labels"] = ids[:, 0] % 2
    elif task == "TOKEN_CLS":
        inputs["labels"] = ids % 2
    if case.masked:
        inputs["attention_mask"] = (torch.arange(case.tokens) < case.tokens - 8).expand_as(ids)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    model.train()

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case.mixing == "autocast"):
            outputs = model(**inputs)
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        del outputs
        optimizer.step()
        optimizer.zero_grad()

    step.held = lambda: held(model, trained, optimizer)  # type: ignore[attr-defined]
    return step, model


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

    step.held = lambda: held(model, trained, optimizer)  # type: ignore[attr-defined]
    return step, model


def held(model: Any, trained: list[Any], optimizer: Any) -> int:
    """Return the bytes of weights, gradients and optimizer state, tensor by tensor."""
    import torch

    seen = {p.data_ptr(): p.nbytes for p in model.parameters()}
    state = sum(
        value.nbytes
        for values in optimizer.state.values()
        for value in values.values()
        if isinstance(value, torch.Tensor)
    )
    return sum(seen.values()) + sum(p.nbytes for p in trained) + state


if __name__ == "__main__":
    main()
