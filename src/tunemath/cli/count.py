"""`tunemath count`: what a method trains of a model, to the last parameter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunemath.cli.options import AsJson, Method, MethodSettings, ModelPath, print_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunemath.space import Blueprint

__all__ = ["blueprint_at", "register"]

_BAD_INPUT = 2


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("count")(_count)


def _count(
    model: ModelPath,
    method: Method = "full",
    settings: MethodSettings = None,
    peft_config: Annotated[
        Path | None, typer.Option("--peft-config", help="PEFT's adapter_config.json, as it is.")
    ] = None,
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
    from tunemath.report.ledger import ledger_product, ledger_view
    from tunemath.space import coverage_of, ledger_of, near_names, parse_space
    from tunemath.space.peft import AdapterConfig, peft_ledger

    if peft_config is not None:
        config = AdapterConfig.read(peft_config)
        blueprint = blueprint_at(model, task or config["task_type"])
        ledger = peft_ledger(blueprint, config)
        asked = config.get("target_modules")
        chosen = bool(config.get("layers_to_transform"))
        also: dict[str, Any] = {"peft_type": config.peft_type, "unknown_keys": [*config.unknown]}
    else:
        space = parse_space(method, settings or ())
        blueprint = blueprint_at(model, task)
        ledger = ledger_of(blueprint, space)
        asked, chosen = getattr(space, "targets", None), method == "last_layers"
        also = {"method": method}
    coverage = coverage_of(blueprint, ledger.change, asked=asked, chosen_layers=chosen)
    product = ledger_product(ledger, coverage, **also)
    if as_json:
        print_json(product)
    else:
        from rich.console import Console

        Console().print(ledger_view(product))
    for key in also.get("unknown_keys", ()):
        print(f"warning: {peft_config} has {key}, which PEFT does not know", file=sys.stderr)
    for name in ledger.unmatched:
        near = near_names(blueprint, name)
        hint = f"; near it: {', '.join(near)}" if near else ""
        print(f"error: the target {name!r} matches nothing in this model{hint}", file=sys.stderr)
    if ledger.unmatched:
        raise typer.Exit(_BAD_INPUT)


def blueprint_at(model: str, task: str | None) -> Blueprint:
    """Read a model's blueprint; a family that is not known needs transformers."""
    from tunemath.space import read_blueprint

    def with_transformers(config: Mapping[str, Any], task_type: str | None) -> Blueprint:
        from tunemath.runner.blueprints import blueprint_from_transformers

        return blueprint_from_transformers(config, task_type=task_type)

    return read_blueprint(Path(model), task_type=task, fallback=with_transformers)
