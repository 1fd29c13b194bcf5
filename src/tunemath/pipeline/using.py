"""What a person does with a finished run: ask it, merge it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunemath.errors import ModelError, RunError
from tunemath.mask import Item, Message, encode_prompt
from tunemath.pipeline import INPUTS
from tunemath.pipeline.folder import differences
from tunemath.pipeline.measuring import answered
from tunemath.pipeline.run import Run
from tunemath.storage import read_jsonl

if TYPE_CHECKING:
    from tunemath.runner.merging import MergeOptions

__all__ = ["ask", "merge", "need_update"]

_PROBES = 8
_OF_WEIGHTS = ("space", "objective", "budget", "mask", "seed")
"""The inputs of training that a contract gives by itself."""


def ask(run: Run, prompt: str, system: str | None = None) -> dict[str, str]:
    """Answer ``prompt`` greedily with the base and with the tuned model.

    The system prompt is the training rows' own when they all share one and none is given.
    """
    from tunemath.runner.answering import generate
    from tunemath.runner.models import choose_device, load_base, load_trained

    need_update(run)
    run.folder.need("plan", "plan.json; `tunemath plan` writes it")
    system = run.folder.read("plan.json")["data"]["shared_system"] if system is None else system
    messages = [Message("system", system)] if system else []
    ids = encode_prompt(run.template, run.tokenizer, [*messages, Message("user", prompt)])
    space = run.contract.space
    model = load_trained(run.model, run.update, *choose_device(space))
    settings: dict[str, Any] = {
        "stop": run.stop_ids,
        "pad": run.tokenizer.pad_id,
        "max_new_tokens": max(64, run.contract.evaluation.max_new_tokens),
        "batch_size": 1,
        "tick": lambda done: None,
    }
    after = generate(model, [ids], **settings)[0]
    if space.method == "full":  # a model of its own, which goes before the base comes
        model = None
        model = load_base(run.model, *choose_device())
    with nullcontext() if space.method == "full" else model.disable_adapter():
        before = generate(model, [ids], **settings)[0]
    return {
        "base": run.tokenizer.decode(before.tokens).strip(),
        "tuned": run.tokenizer.decode(after.tokens).strip(),
    }


def merge(
    run: Run,
    out: Path | None = None,
    options: MergeOptions | None = None,
    items: bool = False,
) -> dict[str, Any]:
    """Write the merged model, tokenizer and template beside it, once it is proven to answer alike.

    The folder appears whole, and only if the merged model read back from disk gives the adapter's
    logits on training rows within the tolerance. With ``items`` it also answers every item of the
    run, and the proof says which of the answers are not those of the tuned model.
    """
    from tunemath.pipeline.products import merge_into
    from tunemath.runner.models import why_not_merged

    need_update(run)
    if items:
        run.folder.need("evaluate", "evaluation to compare with; `tunemath evaluate` makes it")
        _refuse_other_contract(run, "evaluate", ("items", "evaluation"))
    why = why_not_merged(run.contract.space)
    if why is not None:
        raise ModelError(f"nothing to merge: {why}; deploy {run.update} beside the base")
    folder = out if out is not None else run.folder.path / "merged"
    rows = [
        (row.input_ids, row.supervised) for example in run.examples[:_PROBES] for row in example
    ]
    about = rows, "training rows"
    ask = partial(_answered_alike, run) if items else None
    return merge_into(run.model, run.update, folder, options, about, ask, run.progress)


def _answered_alike(run: Run, product: Path) -> dict[str, Any]:
    """Answer a run's items with a product; return which answers are not the tuned model's.

    Beside each stands by how much the product prefers its own: of a generated answer the
    `shortfall` of the tuned model's in logits, of a choice the difference in nats.
    """
    from tunemath.runner.models import choose_device, load_base

    model = load_base(replace(run.model, folder=product), *choose_device())
    found = {}
    for name, items in run.items.items():
        before = read_jsonl(run.folder.path / f"items/tuned.{name}.jsonl")
        rows, _ = answered(run, model, items, run.prompts[name], f"{name} items, merged")
        apart = [
            {"id": new["id"], "gap": _preferred(run, model, item, old, new)}
            for item, old, new in zip(items, before, rows, strict=True)
            if new["output"] != old["output"]
        ]
        found[name] = {"items": len(rows), "same": len(rows) - len(apart), "apart": apart}
    return found


def _preferred(run: Run, model: Any, item: Item, old: dict[str, Any], new: dict[str, Any]) -> float:
    from tunemath.runner.answering import shortfall

    if item.choices is not None:
        return max(new["logprobs"]) - new["logprobs"][item.choices.index(old["output"])]
    answer = run.answer_ids(item, old["output"])
    return shortfall(model, run.prompt_ids(item), answer if old["finished"] else answer[:-1])


def need_update(run: Run) -> None:
    """Refuse a run that has trained nothing yet, or whose weights are not those that it trained.

    Every file of the update is held against the manifest, and the contract against the one that
    was trained: it may have been edited in the run's folder. Data are not asked for, since the
    weights stay what they are when a file of rows changes.
    """
    run.folder.need("train", "trained adapter yet; `tunemath run` trains it")
    _refuse_other_contract(run, "train", _OF_WEIGHTS)


def _refuse_other_contract(run: Run, stage: str, names: Sequence[str]) -> None:
    """Refuse a contract that says otherwise than a finished stage was told."""
    inputs = (run.folder.recorded(stage) or {})["inputs"]
    changed = differences(
        {name: inputs.get(name) for name in names}, {name: INPUTS[name](run) for name in names}
    )
    if changed:
        raise RunError(
            f"{run.folder.path} holds what another contract gave ({'; '.join(changed)}); give the "
            "one that was run, which a run saves as its contract.yaml, or run this one"
        )
