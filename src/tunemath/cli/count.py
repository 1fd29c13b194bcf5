"""`tunemath count`: what a method trains of a model, to the last parameter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunemath.cli.options import AsJson, Method, MethodSettings, ModelPath, PeftConfigPath
from tunemath.cli.output import print_json, say, show
from tunemath.errors import ContractError, ModelError
from tunemath.shown import clip

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tunemath.space import Blueprint
    from tunemath.space.peft import AdapterConfig

__all__ = ["blueprint_at", "refuse_beside", "register", "unknown_words", "unmatched_words"]

_BAD_INPUT = 2
# PEFT's types of the contract's methods that reach a model otherwise than by its modules.
_PEFT_TYPES = {"prefix": "PREFIX_TUNING", "prompt": "PROMPT_TUNING"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("count")(_count)


def _count(
    context: typer.Context,
    model: ModelPath,
    method: Method = "full",
    settings: MethodSettings = None,
    peft_config: PeftConfigPath = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="PEFT's task_type, which chooses the class: CAUSAL_LM, …"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count the parameters that a method trains, without loading the model.

    Needs no torch for the common families; others are built once on the meta device.

    Example: `tunemath count path/to/model --method lora --set rank=16 --set targets=[q_proj]`

    `tunemath count config.json --peft-config adapter_config.json --json`
    """
    if peft_config is None:
        product, problems = _of_method(model, method, settings or (), task)
    else:
        for name, option in (("method", "--method"), ("settings", "--set")):
            refuse_beside(context, name, option)
        product, problems = _of_peft(model, peft_config, task)
    if as_json:
        print_json(product)
    else:
        from tunemath.report.ledger import ledger_view

        show(ledger_view(product))
    for problem in problems:
        say(problem, err=True)
    if product["unmatched_targets"]:
        raise typer.Exit(_BAD_INPUT)


def refuse_beside(context: typer.Context, name: str, option: str) -> None:
    """Refuse an option that was given beside ``--peft-config``."""
    source = context.get_parameter_source(name)
    if source is not None and source.name != "DEFAULT":
        raise ContractError(
            f"{option} has no meaning beside --peft-config, which says the whole method; leave one "
            "of them out"
        )


def _of_method(
    model: str, method: str, settings: Sequence[str], task: str | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the ledger of one of the contract's methods."""
    from tunemath.report.ledger import ledger_product
    from tunemath.space import coverage_of, ledger_of, parse_space
    from tunemath.space.methods import task_of

    space = parse_space(method, settings)
    blueprint = blueprint_at(model, task)
    task_type = task or task_of(blueprint)
    ledger = ledger_of(blueprint, space, task_type=task_type)
    coverage = coverage_of(
        blueprint,
        ledger.change,
        asked=getattr(space, "targets", None),
        chosen_layers=method == "last_layers",
        peft_type=_PEFT_TYPES.get(method, ""),
    )
    return ledger_product(ledger, coverage, method=method, task_type=task_type), []


def _of_peft(model: str, path: Path, task: str | None) -> tuple[dict[str, Any], list[str]]:
    """Return the ledger of an adapter_config.json, and what is wrong with the file."""
    from tunemath.report.ledger import ledger_product
    from tunemath.space import coverage_of
    from tunemath.space.peft import AdapterConfig, peft_ledger

    config = AdapterConfig.read(path)
    if task and config["task_type"] and task != config["task_type"]:
        raise ContractError(
            f"--task is {task}, and {path} has task_type {config['task_type']}; leave --task out, "
            "or change the file"
        )
    blueprint = blueprint_at(model, task or config["task_type"])
    ledger = peft_ledger(blueprint, config)
    coverage = coverage_of(
        blueprint,
        ledger.change,
        asked=config.get("target_modules"),
        chosen_layers=_chooses_layers(config),
        peft_type=config.peft_type,
        field="target_modules",
    )
    product = ledger_product(
        ledger,
        coverage,
        peft_type=config.peft_type,
        task_type=config["task_type"],
        unknown_keys=[*config.unknown],
    )
    warnings = [*unknown_words(path, config)]
    errors = [f"error: {unmatched_words(blueprint, config, name)}" for name in ledger.unmatched]
    return product, warnings + errors


def unknown_words(path: Path, config: AdapterConfig) -> Iterator[str]:
    """Say which keys of an adapter_config.json have no effect."""
    for key in config.unknown:
        yield f"warning: {path} has {clip(key, 80)}, which PEFT does not know"


def _chooses_layers(config: AdapterConfig) -> bool:
    """Whether a configuration leaves layers out on purpose."""
    layers = config.get("layers_to_transform")
    return (
        layers not in (None, [])
        or bool(config.get("exclude_modules"))
        or config.get("adapter_layers") is not None
    )


def unmatched_words(blueprint: Blueprint, config: AdapterConfig, name: str) -> str:
    """Return what is said of a name that matches nothing, with those near it."""
    from tunemath.space import near_names
    from tunemath.space.coverage import near_parameters

    fields = ("target_modules", "target_parameters", "modules_to_save")
    field = next((each for each in fields if name in (config.get(each) or ())), fields[0])
    near = (near_parameters if field == "target_parameters" else near_names)(blueprint, name)
    hint = f"; near it: {', '.join(near)}" if near else ""
    return (
        f"{field} has {name!r}, which matches nothing in this model{hint}; correct it or "
        "leave it out"
    )


def blueprint_at(model: str, task: str | None) -> Blueprint:
    """Read a model's blueprint; a family that is not known needs transformers."""
    from tunemath.space import read_blueprint
    from tunemath.space.blueprint.config import TASKS

    if task is not None and task not in TASKS:
        raise ModelError(f"task_type {task!r} is none of PEFT's; known: {', '.join(TASKS)}")

    def with_transformers(config: Mapping[str, Any], task_type: str | None) -> Blueprint:
        from tunemath.runner.blueprints import blueprint_from_transformers

        return blueprint_from_transformers(config, task_type=task_type)

    return read_blueprint(_files_of(model), task_type=task, fallback=with_transformers)


def _files_of(model: str) -> Path:
    """Return where a model's files are: the path that was given, or the embedded model's."""
    path = Path(model)
    if not path.exists():
        from tunemath.contract import ModelChoice
        from tunemath.runner.resolve import DEFAULT_MODEL, resolve_model

        if model == DEFAULT_MODEL:
            return resolve_model(ModelChoice.named(model)).folder
    return path
