"""`tunemath init` and `tunemath schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tunemath.cli.output import print_json, say

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add both commands."""
    app.command("init")(_init)
    app.command("schema")(_schema)


def _init(
    path: Annotated[Path, typer.Argument(help="The contract to write.")] = Path("finetune.yaml"),
    model: Annotated[str, typer.Option(help="Model id, folder or hub id.")] = "smollm2-135m",
    train: Annotated[str, typer.Option(help="Training rows, JSONL.")] = "train.jsonl",
    task: Annotated[str, typer.Option(help="Held-out task items, JSONL.")] = "test.jsonl",
    retention: Annotated[
        str, typer.Option(help="General-ability items, JSONL.")
    ] = "retention.jsonl",
    objective: Annotated[Literal["sft", "dpo"], typer.Option(help="What is minimised.")] = "sft",
) -> None:
    """Write a commented contract, and the schema that completes it in an editor.

    Example: `tunemath init finetune.yaml --train my/train.jsonl --task my/test.jsonl`
    """
    import json

    from tunemath.commented import commented_contract
    from tunemath.contract import FineTune, contract_schema, name_of
    from tunemath.errors import ContractError
    from tunemath.storage import write_text

    if path.exists():
        raise ContractError(f"{path} exists already; give another name, or delete it first")
    contract = FineTune.parse(
        {
            "name": name_of(path),
            "model": model,
            "objective": {"kind": objective},
            "mask": {"train": train},
            "evaluation": {"task": task, "retention": retention},
        },
        where="init",
        folder=None,
    )
    write_text(path, commented_contract(contract.resolved()))
    schema = path.with_name("finetune.schema.json")
    write_text(schema, json.dumps(contract_schema(), indent=1) + "\n")
    say(f"wrote {path} and {schema}\nnext: edit it, then tunemath plan {path}")


def _schema() -> None:
    """Print the contract's JSON Schema.

    Example: `tunemath schema > finetune.schema.json`
    """
    from tunemath.contract import contract_schema

    print_json(contract_schema())
