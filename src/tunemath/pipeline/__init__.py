"""The stages of a run in order, the hashes of what each reads, and resuming.

Each stage is a function of a `Run` that writes its products and returns their names. `advance`
runs the stages up to the one asked for, and skips those whose inputs and products are as they
were; so the same command after a kill goes on where it stopped. Before the first stage that spends
it stops where `plan` and `mask` have already decided that the verdict can't be a PASS.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunemath import version
from tunemath.errors import RunError
from tunemath.pipeline.early import read_data
from tunemath.pipeline.folder import differences
from tunemath.pipeline.judging import check, mask, report
from tunemath.pipeline.measuring import baselines, evaluate, movement, spectrum
from tunemath.pipeline.planning import plan
from tunemath.pipeline.results import Results
from tunemath.pipeline.run import Run
from tunemath.pipeline.stopping import EARLY, StoppedError, early_findings, stop_if_decided
from tunemath.pipeline.training import MERGED, artefact, train
from tunemath.pipeline.what_if import answer_only, why_unsaved
from tunemath.runner.launchers import refuse_several_processes
from tunemath.space.blueprint.saved import to_json
from tunemath.storage import hash_bytes, write_text

__all__ = [
    "INPUTS",
    "STAGES",
    "Results",
    "Run",
    "Stage",
    "StoppedError",
    "advance",
    "artefact",
    "baselines",
    "check",
    "early_findings",
    "evaluate",
    "mask",
    "movement",
    "plan",
    "report",
    "spectrum",
    "train",
]

_CHECKPOINTS = "checkpoints"
_STARTED = f"{_CHECKPOINTS}/inputs.json"
_FREE = {*EARLY, "check", "report"}
"""The stages that ask no model; before any other it is asked whether a PASS is still possible."""


@dataclass(frozen=True)
class Stage:
    """A stage: its name, the stages that come before it, what it reads, what it does.

    ``reads`` are the stages whose products it depends on; ``inputs`` is everything else.
    """

    name: str
    after: tuple[str, ...]
    reads: tuple[str, ...]
    inputs: Callable[[Run], dict[str, Any]]
    action: Callable[[Run], list[str]]


def _section(name: str) -> Callable[[Run], Any]:
    return lambda run: getattr(run.contract, name).model_dump(mode="json")


def _reads(*names: str) -> Callable[[Run], dict[str, Any]]:
    """Return a function that collects the named inputs of a run."""
    return lambda run: {name: INPUTS[name](run) for name in names}


def _weights(run: Run) -> Any:
    """Return the hash of the base, and of the code in its folder where that may run."""
    weights, code = run.model.weights_hash(), run.model.code_hashes()
    return [weights, code] if code else weights


INPUTS: dict[str, Callable[[Run], Any]] = {
    "model": _weights,
    "shapes": lambda run: [run.model.id, hash_bytes(to_json(run.blueprint).encode())],
    "codec": lambda run: [run.template.sha256, run.tokenizer.sha256],
    "ends": lambda run: list(run.tokenizer.eos_ids),
    "data": lambda run: run.data_hashes,
    "training data": lambda run: run.data_hashes["train"],
    "items": lambda run: {k: v for k, v in run.data_hashes.items() if k != "train"},
    "seed": lambda run: run.contract.seed,
    "space": _section("space"),
    "objective": _section("objective"),
    "budget": lambda run: run.contract.budget.model_dump(mode="json", exclude={"save_every"}),
    "mask": lambda run: run.contract.mask.model_dump(mode="json", exclude={"train"}),
    "evaluation": lambda run: run.contract.evaluation.model_dump(
        mode="json", exclude={"task", "retention", "weights", "retention_margin", "bootstraps"}
    ),
    "bootstraps": lambda run: run.contract.evaluation.bootstraps,
    "decision": lambda run: run.contract.evaluation.model_dump(
        mode="json", include={"weights", "retention_margin"}
    ),
    "contract": lambda run: run.contract.resolved(),
}

STAGES: tuple[Stage, ...] = (
    Stage(
        "plan",
        (),
        (),
        _reads(
            "shapes", "codec", "data", "space", "objective", "budget", "mask", "evaluation", "seed"
        ),
        plan,
    ),
    Stage("mask", (), (), _reads("codec", "ends", "data", "objective", "mask"), mask),
    Stage(
        "baselines",
        EARLY,
        (),
        _reads("model", "codec", "ends", "data", "evaluation", "seed"),
        baselines,
    ),
    Stage(
        "train",
        ("plan", "mask"),
        (),
        _reads("model", "codec", "training data", "space", "objective", "budget", "mask", "seed"),
        train,
    ),
    Stage("artefact", ("train",), ("train",), _reads("model", "space"), artefact),
    Stage(
        "evaluate",
        ("baselines", "train"),
        ("baselines", "train"),
        _reads("items", "ends", "evaluation"),
        evaluate,
    ),
    Stage(
        "movement",
        ("train",),
        ("train",),
        _reads("model", "codec", "items", "bootstraps", "seed"),
        movement,
    ),
    Stage("spectrum", ("train",), ("train",), _reads("model", "space"), spectrum),
    Stage(
        "check",
        ("plan", "mask", "baselines", "train", "artefact", "evaluate", "movement"),
        ("plan", "mask", "baselines", "train", "artefact", "evaluate", "movement"),
        _reads("decision"),
        check,
    ),
    Stage(
        "report",
        ("check", "spectrum"),
        (
            "plan",
            "mask",
            "baselines",
            "train",
            "artefact",
            "evaluate",
            "movement",
            "spectrum",
            "check",
        ),
        _reads("contract"),
        report,
    ),
)


def advance(
    run: Run,
    until: str = "report",
    started: Callable[[str, bool], None] | None = None,
    go_on: bool = False,
) -> dict[str, Any]:
    """Bring a run up to a stage and return its evidence.

    ``started(stage, skipped)`` is told of each stage in turn. Where a required check can no longer
    pass, raises `StoppedError` with the findings before the first stage that spends, unless
    ``go_on``. Raises `RunError` when trained weights would be overwritten under another contract
    and ``run.fresh`` is not set.

    `plan` and `mask` never write into a run that has begun under another contract or with other
    data, nor wait for another process: their evidence then has ``what_if``, the reason, and nothing
    was saved.
    """
    wanted = _ancestors(until)
    _validate(run)
    if wanted <= set(EARLY):
        stages = {stage.name: stage for stage in STAGES if stage.name in wanted}
        why = why_unsaved(run, {name: _inputs(run, stage) for name, stage in stages.items()})
        if why is not None:
            return answer_only(run, [stage.action for stage in stages.values()], why)
    else:
        refuse_several_processes()
    with run.folder.locked():
        _begin(run)
        for stage in STAGES:
            if stage.name not in wanted:
                continue
            inputs = _inputs(run, stage)
            done = run.folder.holds(stage.name, inputs)
            if not (done or go_on or stage.name in _FREE):
                stop_if_decided(run)
            if started is not None:
                started(stage.name, done)
            if not done:
                if stage.name == "train":
                    _claim_checkpoints(run, inputs)
                run.folder.execute(
                    stage.name, inputs, lambda stage=stage: stage.action(run), _about(run)
                )
            if stage.name == "train":  # recorded, so no longer needed
                shutil.rmtree(run.folder.path / _CHECKPOINTS, ignore_errors=True)
        return run.evidence()


def _validate(run: Run) -> None:
    """Read all that a user wrote, so that bad input is refused before anything is written."""
    _ = run.ledger
    read_data(run)
    for name in ("rows", "items", "few_shot"):
        getattr(run, name)


def _ancestors(until: str) -> set[str]:
    """Return a stage and all that it needs."""
    stages = {stage.name: stage for stage in STAGES}
    wanted, queue = set(), [until]
    while queue:
        name = queue.pop()
        if name not in wanted:
            wanted.add(name)
            queue += stages[name].after
    return wanted


def _inputs(run: Run, stage: Stage) -> dict[str, Any]:
    """Return all that a stage's products depend on: its inputs, and the products it reads."""
    inputs = stage.inputs(run)
    for name in stage.reads:
        entry = run.folder.recorded(name)
        inputs[f"{name} products"] = (entry or {}).get("products")
    return inputs


def _begin(run: Run) -> None:
    """Refuse to go over another contract's weights, then save the resolved contract."""
    train = next(stage for stage in STAGES if stage.name == "train")
    if run.fresh:
        run.folder.forget_unreadable()
    else:
        _guard(run, _inputs(run, train))
    shutil.rmtree(run.folder.path / MERGED, ignore_errors=True)  # of a process that was killed
    write_text(run.folder.path / "contract.yaml", run.contract.to_yaml())


def _claim_checkpoints(run: Run, inputs: dict[str, Any]) -> None:
    """Keep the checkpoints of a training with these inputs, and of no other."""
    started = run.folder.path / _STARTED
    if not started.exists() or run.folder.read(_STARTED) != inputs:
        shutil.rmtree(started.parent, ignore_errors=True)
        run.folder.write(_STARTED, inputs)


def _guard(run: Run, inputs: dict[str, Any]) -> None:
    """Refuse to train over weights, finished or not, that another contract made."""
    entry = run.folder.recorded("train")
    started = run.folder.path / _STARTED
    if entry is not None:
        before, broken = entry["inputs"], run.folder.broken("train")
    elif started.exists():
        before, broken = run.folder.read(_STARTED), []
    else:
        return
    changed = differences(before, inputs)
    if changed or broken:
        reason = "; ".join(changed) if changed else f"{', '.join(broken)} missing or changed since"
        raise RunError(
            f"{run.folder.path} holds weights trained under another contract ({reason}); "
            "train over them with --fresh, or keep both with --set name=OTHER"
        )


def _about(run: Run) -> dict[str, Any]:
    return {
        "run": run.contract.name,
        "tunemath": version.__version__,
        "code_sha256": version.code_hash(),
        "model": {"id": run.model.id, "revision": run.model.revision},
    }
