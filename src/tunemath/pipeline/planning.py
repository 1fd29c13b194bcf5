"""The plan: what the five choices imply, before anything is spent. No torch, no SciPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunemath.budget import (
    Work,
    attended_pairs,
    forward_flops,
    learning_rates,
    measured_gflops,
    plan_steps,
    seconds_of,
    smallest_detectable_difference,
    this_device,
    training_flops,
    warmup_steps,
)
from tunemath.evaluation import can_show_gain, smallest_kept_margin
from tunemath.mask import common_prefix
from tunemath.pipeline.costs import Precision, saved_bytes, training_of
from tunemath.pipeline.early import notices_of, positions_product
from tunemath.pipeline.memory import Scenario, memory_product
from tunemath.pipeline.peaks import run_peaks
from tunemath.pipeline.run import Run
from tunemath.space import (
    UNFREEZING,
    Ledger,
    PrefixSpace,
    PromptSpace,
    coverage_of,
    peft_settings,
)  # fmt: skip

__all__ = ["plan", "schedule_of"]

_ALPHA, _POWER = 0.05, 0.8
_RATE_SECONDS = 0.08


def plan(run: Run) -> list[str]:
    """Compute parameters, memory, FLOPs, steps, seconds and the smallest detectable effect."""
    ledger = run.ledger
    positions = positions_product(run)
    schedule = schedule_of(run)
    data = _data(run)
    works = _works(run, ledger)
    rate = measured_gflops(_RATE_SECONDS)
    seconds = {stage: round(seconds_of(work, rate), 1) for stage, work in works.items()}
    blueprint = run.blueprint
    product = {
        "model": {
            "id": run.model.id,
            "revision": run.model.revision,
            "architecture": blueprint.architecture,
            "model_type": blueprint.model_type,
            "layers": blueprint.layers,
            "hidden": blueprint.hidden,
            "vocab": blueprint.vocab,
            "dtype": "float32",
            "note": run.model.note,
        },
        "parameters": {
            "total": ledger.total,
            "base": blueprint.parameters,
            "trainable": ledger.trainable,
            "percent": ledger.percent,
            "by_target": _by_target(ledger, getattr(run.contract.space, "rank", None)),
            "coverage": _coverage(run),
            "notes": list(ledger.notes),
            "saved_bytes": saved_bytes(ledger),
        },
        "data": data,
        "positions": positions,
        "notices": notices_of(run),
        "schedule": schedule,
        "memory": _memory(run),
        "compute": {
            "training_flops": works["train"].training,
            "evaluation_flops": sum(
                work.forward + work.decoding for stage, work in works.items() if stage != "train"
            ),
        },
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1), "rate_gflops": rate},
        "power": _power(run),
    }
    return [run.folder.write("plan.json", product)]


def _coverage(run: Run) -> dict[str, list[str]]:
    """Return what the method does not reach though its targets suggest so."""
    space = run.contract.space
    change = run.ledger.change
    found = coverage_of(
        run.blueprint,
        change,
        asked=getattr(space, "targets", None),
        chosen_layers=space.method == "last_layers",
        peft_type=(peft_settings(space)[0] if isinstance(space, PrefixSpace | PromptSpace) else ""),
    )
    return {"findings": list(found.findings), "unmatched": list(change.unmatched)}


def _by_target(ledger: Ledger, rank: int | None) -> list[dict[str, Any]]:
    """Return what is trained by target: modules that share a short name and a shape in one row."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for row in ledger.by_module():
        if row["trainable"]:
            key = row["name"].rpartition(".")[2], row["kind"], tuple(row["shape"])
            sums = groups.setdefault(key, [0, 0])
            sums[0] += 1
            sums[1] += row["trainable"]
    return [
        {
            "name": name,
            "modules": modules,
            "shape": list(shape),
            **_widths(kind, shape),
            "rank": rank,
            "parameters": parameters,
        }
        for (name, kind, shape), (modules, parameters) in groups.items()
    ]


def _widths(kind: str, shape: tuple[int, ...]) -> dict[str, int]:
    if kind not in ("linear", "conv1d"):
        return {}
    d_out, d_in = shape if kind == "linear" else shape[::-1]
    return {"d_in": d_in, "d_out": d_out}


def schedule_of(run: Run) -> dict[str, Any]:
    """Return steps, warm-up and the learning rate of every step."""
    budget = run.contract.budget
    steps = plan_steps(len(run.examples), budget.batch_size, budget.epochs)
    warmup = warmup_steps(steps, budget.warmup_ratio)
    return {
        "steps": steps,
        "warmup_steps": warmup,
        "rows_per_step": budget.batch_size,
        "epochs": budget.epochs,
        "tokens_total": budget.epochs * _tokens(run.examples),
        "peak_learning_rate": budget.learning_rate,
        "learning_rates": [
            float(rate)
            for rate in learning_rates(steps, warmup, budget.learning_rate, budget.schedule)
        ],
    }


def _tokens(encoded: Sequence[Sequence[Any]]) -> int:
    return sum(len(row.input_ids) for example in encoded for row in example)


def _data(run: Run) -> dict[str, Any]:
    rows = [row for example in run.examples for row in example]
    return {
        "train_rows": len(run.examples),
        "tokens_per_epoch": _tokens(run.examples),
        "supervised_tokens_per_epoch": sum(sum(row.supervised) for row in rows),
        "longest_row": max(len(row.input_ids) for row in rows),
        "task_items": len(run.items["task"]),
        "shared_system": run.shared_system,
        "retention_items": len(run.items.get("retention", ())),
    }


def _memory(run: Run) -> dict[str, Any]:
    """Return the memory of the worst step and of each stage.

    The worst step has the longest rows, and the most supervised tokens.
    """
    contract, budget = run.contract, run.contract.budget
    rows = [row for example in run.examples for row in example]
    device = this_device()
    own = contract.space.method in UNFREEZING
    scenario = Scenario(
        blueprint=run.blueprint,
        space=contract.space,
        tokens=max(len(row.input_ids) for row in rows),
        supervised=max(sum(row.supervised) for row in rows),
        batch=budget.batch_size,
        micro_batch=budget.micro_batch_size or budget.batch_size,
        objective=contract.objective.kind,
        precision=_precision(device.kind, own),
        checkpointing=budget.gradient_checkpointing,
        device=device.kind,
    )
    return run_peaks(run, scenario, memory_product(scenario, device.memory, contract=True))


def _precision(device: str, own: bool) -> Precision:
    """Return the numbers of a run: on a GPU by autocast, and all float32 where the base learns."""
    if device == "cpu":
        return Precision("float32")
    return Precision("bfloat16", base="float32" if own else None)


def _power(run: Run) -> dict[str, Any]:
    product: dict[str, Any] = {"alpha": _ALPHA, "power": _POWER}
    for name, items in run.items.items():
        product[name] = {
            "items": len(items),
            "smallest_difference": _smallest_difference(len(items)),
        }
        if name == "retention":
            product[name]["smallest_kept_margin"] = smallest_kept_margin(len(items))
    return product


def _smallest_difference(items: int) -> float | None:
    """Return the smallest difference that so many items will show; None where they can't any."""
    if not can_show_gain(items):
        return None
    return smallest_detectable_difference(items, _ALPHA, _POWER)


def _works(run: Run, ledger: Ledger) -> dict[str, Work]:
    """Return the work of each stage, with shared prefixes counted once as they are computed."""
    blueprint, sides = run.blueprint, len(run.examples[0])
    rows = [row for example in run.examples for row in example]
    supervised = sum(sum(row.supervised) for row in rows)
    budget = run.contract.budget
    tokens, pairs = _attended(run)
    training = training_flops(
        blueprint, training_of(ledger), tokens, supervised,
        attended=pairs, checkpointing=budget.gradient_checkpointing,
    )  # fmt: skip
    if sides == 2:  # DPO: the reference passes forward as well
        training += forward_flops(blueprint, _tokens(run.examples), supervised, attended=pairs)
    training *= budget.epochs
    tokens = _tokens(run.probe_examples)
    probed = 3 * forward_flops(blueprint, tokens, tokens)
    training += 2 * training_flops(blueprint, training_of(ledger), tokens, tokens) + probed
    base, prompted = _answering(run, False), _answering(run, True)
    positions = _teacher_forced_tokens(run)
    both = 2 * forward_flops(blueprint, positions, positions)
    weights = 4.0 * blueprint.parameters
    return {
        "mask": Work(),
        "baselines": Work(forward=base[0] + prompted[0], decoding=base[1] + prompted[1], loads=1),
        "train": Work(training=training, loads=1, hashed_bytes=2 * weights),
        "artefact": Work(forward=probed, loads=3, hashed_bytes=weights),
        "evaluate": Work(forward=base[0], decoding=base[1], loads=2),
        "movement": Work(forward=both, loads=2, kl_values=float(positions) * blueprint.vocab),
        "spectrum": Work(loads=1),
        "check": Work(),
        "report": Work(loads=2),
    }


def _attended(run: Run) -> tuple[int, int]:
    """Return the tokens of an epoch, and the pairs that attend; virtual tokens add to both."""
    lengths = [len(row.input_ids) for example in run.examples for row in example]
    tokens, pairs = sum(lengths), attended_pairs(lengths)
    space = run.contract.space
    if isinstance(space, PrefixSpace | PromptSpace):
        pairs += tokens * space.length
    if isinstance(space, PromptSpace):  # read once in each pass
        budget = run.contract.budget
        passes = -(-len(run.examples) // (budget.micro_batch_size or budget.batch_size))
        tokens += passes * space.length
    return tokens, pairs


def _answering(run: Run, with_examples: bool) -> tuple[float, float]:
    """Return FLOPs of reading the prompts and choices, and of generating the answers."""
    forward = decoding = 0.0
    for name, items in run.items.items():
        own = _own_tokens(run.prompts[name])
        if with_examples:
            own += sum(_length(run, turn.content) for turn in run.few_shot)
        if items[0].choices is None:
            generated = len(items) * run.contract.evaluation.max_new_tokens
            forward += forward_flops(run.blueprint, own, len(items))
            decoding += forward_flops(run.blueprint, generated, generated)
        else:
            read = sum(_length(run, choice) for item in items for choice in item.choices or ())
            forward += forward_flops(run.blueprint, own + read, read)
    return forward, decoding


def _teacher_forced_tokens(run: Run) -> int:
    return sum(
        _own_tokens(run.prompts[name]) + sum(_length(run, item.reference) for item in items)
        for name, items in run.items.items()
    )


def _length(run: Run, text: str) -> int:
    """Return a text's tokens with its terminator; near enough to foretell seconds."""
    return len(run.tokenizer.encode(text)) + 1


def _own_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """Return the prompts' tokens with their common prefix counted once."""
    return sum(map(len, prompts)) - len(common_prefix(prompts)) * (len(prompts) - 1)
