"""The stages that ask a model: baselines, evaluate, movement, spectrum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from tunemath.evaluation import bootstrap_ratio, choice_prediction, exact_match, items_sha256
from tunemath.mask import Item
from tunemath.pipeline.questions import Questions
from tunemath.pipeline.run import Run
from tunemath.storage import read_jsonl, write_jsonl

if TYPE_CHECKING:
    from tunemath.runner.movement import RowMovement

__all__ = ["answered", "baselines", "evaluate", "movement", "spectrum"]

_SHOWN = 10


def baselines(run: Run) -> list[str]:
    """Evaluate the base, and the base with examples in its prompt, on every item."""
    model = _base(run)
    arms: dict[str, Any] = {}
    files: list[str] = []
    for arm in ("base", "prompted"):
        arms[arm], written = _evaluate_arm(run, model, arm)
        files += written
    few_shot = run.contract.evaluation.few_shot
    return [run.folder.write("baselines.json", {"few_shot": few_shot, "arms": arms}), *files]


def evaluate(run: Run) -> list[str]:
    """Evaluate the tuned model on the same items."""
    arms, files = _evaluate_arm(run, _tuned(run), "tuned")
    before = read_jsonl(run.folder.path / "items/base.task.jsonl")
    after = read_jsonl(run.folder.path / "items/tuned.task.jsonl")
    spread = np.linspace(0, len(before) - 1, min(_SHOWN, len(before))).round().astype(int)
    shown = [
        {
            "messages": [asdict(message) for message in run.items["task"][i].prompt],
            "prompt": before[i]["prompt"],
            "reference": before[i]["reference"],
            "base": before[i]["output"],
            "tuned": after[i]["output"],
        }
        for i in spread
    ]
    product = {"arms": {"tuned": arms}, "before_after": shown}
    return [run.folder.write("evaluation.json", product), *files]


def movement(run: Run) -> list[str]:
    """Measure KL(tuned ‖ base) per answer token, teacher-forced, with bootstrap intervals."""
    product: dict[str, Any] = {
        "direction": "KL(tuned ‖ base)",
        "unit": "nats per answer token",
        "bootstraps": run.contract.evaluation.bootstraps,
        "confidence": 0.95,
        "retention": None,
    }
    for name, rows in _movements(run).items():
        product[name] = _pooled(rows, run.contract.evaluation.bootstraps, run.contract.seed)
    return [run.folder.write("movement.json", product)]


def _movements(run: Run) -> dict[str, list[RowMovement]]:
    """Measure every set; a tuned model without its base inside goes before the base comes."""
    from tunemath.runner.models import choose_device, load_base
    from tunemath.runner.movement import Read, kept_states, movements_from, row_movements

    sets, done = {}, 0
    for name, items in run.items.items():
        answers = [run.answer_ids(item, item.reference) for item in items]
        sets[name] = Read(run.prompts[name], answers, run.tokenizer.pad_id), done
        done += len(items)

    def tick(start: int) -> Callable[[int], None]:
        return lambda n: run.progress("movement", start + n, done)

    tuned = _tuned(run)
    if run.contract.space.method != "full":
        return {name: row_movements(tuned, read, tick(at)) for name, (read, at) in sets.items()}
    kept = {name: kept_states(tuned, read) for name, (read, _) in sets.items()}
    del tuned
    base = load_base(run.model, *choose_device(run.contract.space))
    return {
        name: movements_from(kept.pop(name), base, read, tick(at))
        for name, (read, at) in sets.items()
    }


def _pooled(rows: Sequence[Any], resamples: int, seed: int) -> dict[str, Any]:
    """Pool rows: ΣKL / Σpositions, its interval over rows, and the mean at each answer position."""
    sums = np.array([sum(row.answer) for row in rows])
    positions = np.array([len(row.answer) for row in rows])
    interval = bootstrap_ratio(sums, positions, resamples=resamples, seed=seed)
    prompt_positions = sum(row.prompt_positions for row in rows)
    prompt_sum = sum(row.prompt_sum for row in rows)
    by_position = []
    for place in range(int(positions.max())):
        values = [row.answer[place] for row in rows if len(row.answer) > place]
        by_position.append({"position": place, "kl": float(np.mean(values)), "rows": len(values)})
    return {
        "kl": float(sums.sum() / positions.sum()),
        "low": interval.low,
        "high": interval.high,
        "positions": int(positions.sum()),
        "rows": len(rows),
        "prompt": {"kl": prompt_sum / max(1, prompt_positions), "positions": prompt_positions},
        "by_position": by_position,
        "top1_agreement": sum(row.agree for row in rows) / int(positions.sum()),
    }


def spectrum(run: Run) -> list[str]:
    """Compute the singular values of every ΔW: from LoRA's factors, else of the difference."""
    from tunemath.runner.spectra import update_spectrum

    product = update_spectrum(run.model, run.update, run.contract.space)
    return [run.folder.write("spectrum.json", product)]


def _base(run: Run) -> Any:
    from tunemath.runner.models import choose_device, load_base

    return load_base(run.model, *choose_device())


def _tuned(run: Run) -> Any:
    from tunemath.runner.models import choose_device, load_trained

    return load_trained(run.model, run.update, *choose_device(run.contract.space))


def _evaluate_arm(run: Run, model: Any, arm: str) -> tuple[dict[str, Any], list[str]]:
    """Answer every set with one arm; per-item results go to ``items/ARM.SET.jsonl``."""
    arms: dict[str, Any] = {"retention": None}
    files = []
    for name, items in run.items.items():
        prompts = [run.prompt_ids(item, with_examples=arm == "prompted") for item in items]
        label = f"{name} items, {arm}"
        rows, metric = answered(run, model, items, prompts, label)
        file = f"items/{arm}.{name}.jsonl"
        write_jsonl(run.folder.path / file, rows)
        files.append(file)
        correct = sum(row["score"] for row in rows)
        arms[name] = {
            "metric": metric,
            "items": len(rows),
            "correct": correct,
            "score": correct / len(rows),
            "unfinished": sum(not row["finished"] for row in rows),
            "file": file,
            "items_sha256": items_sha256(rows),
        }
    return arms, files


def answered(
    asked: Questions, model: Any, items: Sequence[Item], prompts: Sequence[Any], label: str
) -> tuple[list[dict[str, Any]], str]:
    """Let a model answer items of one form; return a record with a score an item, and the metric.

    ``prompts`` are the items' ids; ``label`` is what the progress of the work is called.
    """
    if items[0].choices is None:
        return _generated(asked, model, items, prompts, label), "exact match"
    metric = "preference accuracy" if items[0].is_pair else "choice accuracy"
    return _chosen(asked, model, items, prompts, label), metric


def _generated(
    asked: Questions, model: Any, items: Sequence[Item], prompts: Sequence[Any], label: str
) -> list[dict[str, Any]]:
    from tunemath.runner.answering import generate

    evaluation = asked.evaluation
    answers = generate(
        model,
        prompts,
        stop=asked.stop_ids,
        pad=asked.tokenizer.pad_id,
        max_new_tokens=evaluation.max_new_tokens,
        batch_size=evaluation.batch_size,
        tick=lambda done: asked.progress(label, done, len(items)),
    )
    rows = []
    for item, answer in zip(items, answers, strict=True):
        output = asked.tokenizer.decode(answer.tokens).strip()
        rows.append(
            {
                **_identity(item),
                "output": output,
                "score": exact_match(output, item.reference),
                "finished": answer.finished,
            }
        )
    return rows


def _chosen(
    asked: Questions, model: Any, items: Sequence[Item], prompts: Sequence[Any], label: str
) -> list[dict[str, Any]]:
    from tunemath.runner.answering import score_choices

    choices = [asked.choice_ids(item) for item in items]
    scores = score_choices(
        model,
        prompts,
        choices,
        pad=asked.tokenizer.pad_id,
        batch_size=asked.evaluation.batch_size,
        tick=lambda done: asked.progress(label, done, len(items)),
    )
    rows = []
    for item, values in zip(items, scores, strict=True):
        best = choice_prediction(values)
        rows.append(
            {
                **_identity(item),
                "output": (item.choices or ())[best],
                "score": int(best == item.correct),
                "finished": True,
                "logprobs": values,
            }
        )
    return rows


def _identity(item: Item) -> dict[str, Any]:
    return {"id": item.id, "prompt": item.prompt[-1].content, "reference": item.reference}
