"""Whose rank is asked for: a run's update, or any tuned model beside its base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from tunemath.contract import FineTune, ModelChoice
from tunemath.errors import ContractError, ModelError, RunError
from tunemath.evaluation import Evaluation
from tunemath.mask import Item, Message, encode_prompt
from tunemath.pipeline.folder import RunFolder
from tunemath.pipeline.points import WHOLE, Subject, update_hash
from tunemath.pipeline.questions import Questions
from tunemath.pipeline.ranking import RankOptions, measure_ranks
from tunemath.pipeline.run import Run
from tunemath.pipeline.using import need_update
from tunemath.record import explain
from tunemath.runner.bound import refuse_altered
from tunemath.runner.resolve import ResolvedModel, resolve_model
from tunemath.storage import read_json, read_jsonl, write_json, write_text

__all__ = ["rank_models", "rank_run"]

Say = Callable[[str], None]

_PROBES = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Translate to Spanish: The house is small.",
    "What is 17 + 25?",
    "Name three animals that can fly.",
    "Summarise in one sentence: The meeting was moved from Monday to Thursday, because the room "
    "was being painted and two people were ill.",
    'Is the following review positive or negative? "The soup was cold and the waiter was rude."',
    "Write a Python function that returns the larger of two numbers.",
    "What day comes after Tuesday?",
    "Correct the spelling: I recieved your mesage yesterday.",
    "Explain in two sentences why the sky is blue.",
    "Give a synonym of 'quick'.",
    "Continue the list: 2, 4, 8, 16,",
    "Who wrote Romeo and Juliet?",
    "Write the date 5 March 2021 as YYYY-MM-DD.",
    "Which is heavier, a kilogram of iron or a kilogram of feathers?",
)
_PROBE_TOKENS = 32
_BATCH = 16


def rank_run(run: Run, options: RankOptions, most: int, progress: Any, say: Say) -> dict[str, Any]:
    """Measure which rank a finished run's update needed; write RUN/rank.

    ``most`` is the number of items taken of each set, spread evenly. Returns ``rank.json``.
    Raises `ModelError` where the method changes no weight.
    """
    from tunemath.runner.models import why_not_merged

    need_update(run)
    why = why_not_merged(run.contract.space)
    if why is not None:
        raise ModelError(f"{run.folder.path} has no rank to cut: {why}")
    options = replace(options, bootstraps=run.evaluation.bootstraps, seed=run.contract.seed)
    questions = Questions(lambda: run.model.folder, run.evaluation, progress)
    subject = _asked(run.model, run.update, questions, most)
    with run.folder.locked():
        folder = run.folder.path / "rank"
        product = {
            "source": f"the run's own items ({run.contract.name})",
            "adapter": run.update.name == "adapter",
            **measure_ranks(subject, folder, options, progress, say),
        }
        product["as_evaluated"] = _as_evaluated(run, folder / "points" / subject.key()[:16])
        _write(folder, product)
    return product


def rank_models(
    base: str,
    tuned: Path,
    contract: Path | None,
    data: Path | None,
    out: Path,
    options: RankOptions,
    most: int,
    progress: Any,
    say: Say,
) -> dict[str, Any]:
    """Measure which rank the difference of a tuned model, or an adapter, from its base needed.

    The items are a contract's, or those of ``data``; without either only KL is measured, on probe
    prompts that the tuned model answers itself. Writes ``out`` and returns its ``rank.json``.
    """
    if not tuned.is_dir():
        raise ModelError(f"{tuned} is no folder; give a tuned model's, or a PEFT adapter's")
    if contract is not None and data is not None:
        raise ContractError("--contract and --data exclude each other; give one")
    model = resolve_model(ModelChoice.named(base))
    refuse_altered(tuned)
    update_hash(tuned)
    codec = tuned if (tuned / "tokenizer.json").is_file() else model.folder
    say(f"tokenizer and template: those in {codec}")
    with RunFolder(out).locked():
        if contract is not None:
            given = FineTune.load(contract)
            options = replace(options, bootstraps=given.evaluation.bootstraps, seed=given.seed)
            source = f"the items of {contract}"
            subject = _asked(
                model, tuned, Questions(lambda: codec, given.evaluation, progress), most
            )
        elif data is not None:
            source = f"the items of {data}"
            subject = _asked(model, tuned, _of_data(codec, data, progress), most)
        else:
            source = f"{len(_PROBES)} built-in probe prompts, answered by the tuned model itself"
            subject = _probed(model, tuned, codec, out, progress)
        say(
            f"items: {source}"
            + ("" if subject.questions and not options.kl_only else "; KL only, no score")
        )
        product = {
            "source": source,
            "adapter": (tuned / "adapter_config.json").is_file(),
            **measure_ranks(subject, out, options, progress, say),
            "as_evaluated": None,
        }
        _write(out, product)
    return product


def _asked(base: ResolvedModel, update: Path, questions: Questions, most: int) -> Subject:
    """Return a subject that is asked the items of a contract or a file, some of each set."""
    from tunemath.runner.curves import Asked

    questions.items = {name: _spread(items, most) for name, items in questions.items.items()}
    asked = {
        name: Asked(questions.prompts[name], [questions.answer_ids(i, i.reference) for i in items])
        for name, items in questions.items.items()
    }
    return Subject(base, update, asked, questions.tokenizer.pad_id, questions)


def _spread(items: list[Item], most: int) -> list[Item]:
    """Return at most so many items, spread evenly over all."""
    if most >= len(items):
        return items
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, most).round()]


def _of_data(codec: Path, data: Path, progress: Any) -> Questions:
    """Return the items of a file; an answer may be one token longer than the longest reference."""
    try:
        items = Evaluation(task=data)
    except ValidationError as error:
        raise ContractError(f"--data {data}: {explain(error, Evaluation)}") from None
    questions = Questions(lambda: codec, items, progress)
    longest = max(len(questions.answer_ids(i, i.reference)) for i in questions.items["task"])
    questions.evaluation = Evaluation(task=data, max_new_tokens=longest + 1)
    return questions


def _probed(base: ResolvedModel, update: Path, codec: Path, out: Path, progress: Any) -> Subject:
    """Return a subject that is asked the probe prompts; the tuned model's answers are kept."""
    from tunemath.runner.curves import Asked

    questions = Questions(lambda: codec, Evaluation(task=Path("probes")), progress)
    prompts = [
        encode_prompt(questions.template, questions.tokenizer, [Message("user", text)])
        for text in _PROBES
    ]
    path = out / "points" / f"probes-{update_hash(update)[:16]}.json"
    if not path.exists():
        write_json(
            path, {"prompts": prompts, "answers": _answers(base, update, questions, prompts)}
        )
    kept = read_json(path)
    if kept["prompts"] != [list(ids) for ids in prompts]:
        raise RunError(f"{path} was written with another tokenizer; delete it, or give other --out")
    return Subject(base, update, {"probes": Asked(prompts, kept["answers"])},
                   questions.tokenizer.pad_id)  # fmt: skip


def _answers(
    base: ResolvedModel, update: Path, questions: Questions, prompts: list[tuple[int, ...]]
) -> list[list[int]]:
    """Return the tuned model's greedy answers, with the terminator where it came to one."""
    from tunemath.runner.answering import generate
    from tunemath.runner.curves import load_tuned

    answers = generate(
        load_tuned(base, update),
        prompts,
        stop=questions.stop_ids,
        pad=questions.tokenizer.pad_id,
        max_new_tokens=_PROBE_TOKENS,
        batch_size=_BATCH,
        tick=lambda done: questions.progress("answers", done, len(prompts)),
    )
    stop = questions.stop_ids[-1]
    return [[*answer.tokens, *([stop] if answer.finished else [])] for answer in answers]


def _as_evaluated(run: Run, points: Path) -> Mapping[str, int] | None:
    """Count the answers of the whole update, in the weights, that are those of the evaluation."""
    path = run.folder.path / "items/tuned.task.jsonl"
    if path.exists():
        run.folder.need("evaluate", "evaluation to compare with; `tunemath evaluate` makes it")
    score = points / f"{WHOLE.name}.score.json"
    if not (path.exists() and score.exists()):
        return None
    before = {row["id"]: row["output"] for row in read_jsonl(path)}
    now = read_json(score)["items"]
    return {"same": sum(before.get(row["id"]) == row["output"] for row in now), "of": len(now)}


def _write(folder: Path, product: dict[str, Any]) -> None:
    """Write the product, its page and its figures."""
    from tunemath.report import rank_advice, rank_figures, rank_page, standalone_svg

    product["advice"] = rank_advice(product)
    write_json(folder / "rank.json", product)
    write_text(folder / "rank.html", rank_page(product))
    for figure in rank_figures(product):
        write_text(folder / f"{figure.name}.svg", standalone_svg(figure.svg))
