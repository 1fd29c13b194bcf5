"""`tunemath memory`: what a training step holds, and what to change so that it fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tunemath.cli.options import AsJson, Method, MethodSettings, ModelPath, PeftConfigPath
from tunemath.cli.output import print_json, say, show
from tunemath.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tunemath.pipeline.memory import Scenario
    from tunemath.space import Blueprint, UpdateSpace
    from tunemath.space.peft import AdapterConfig

__all__ = ["register"]

_DOES_NOT_FIT = 1
_OBJECTIVES = ("sft", "dpo")
_REFERENCES = ("switched off", "copy", "cached")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("memory")(_memory)


def _memory(
    context: typer.Context,
    model: ModelPath,
    method: Method = "lora",
    settings: MethodSettings = None,
    peft_config: PeftConfigPath = None,
    length: Annotated[
        int,
        typer.Option("--length", "-T", min=1, max=10_000_000, help="Tokens of the longest row."),
    ] = 1024,
    supervised: Annotated[
        int | None,
        typer.Option(min=1, max=10_000_000, help="Supervised tokens of a row; all when not given."),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Examples in an optimizer step.")
    ] = 8,
    micro_batch: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help="Examples in memory at once; else the batch."),
    ] = None,
    objective: Annotated[str, typer.Option(help="sft, or dpo: two rows an example.")] = "sft",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; by the device if not given.")
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="In half precision: autocast (what is trained is float32, products are cast, as "
            "by the Trainer's bf16), plain (float32 adapters, nothing cast around them), or pure "
            "(weights, gradients and optimizer state in --dtype)."
        ),
    ] = "autocast",
    quantise: Annotated[
        str | None, typer.Option(help="The base's linear layers: nf4, nf4-double or int8.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, adamw_8bit, adafactor, …")] = "adamw",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute activations again in backward.")
    ] = False,
    attention: Annotated[str, typer.Option(help="fused, or eager: all T × T scores.")] = "fused",
    masked: Annotated[
        bool, typer.Option("--masked", help="Attention has a mask, as other trainers give it.")
    ] = False,
    logits: Annotated[
        str, typer.Option(help="tiles, or all: of every position, as most trainers hold them.")
    ] = "tiles",
    reference: Annotated[
        str | None, typer.Option(help="DPO's: 'switched off', copy or cached.")
    ] = None,
    zero: Annotated[
        int, typer.Option(min=0, max=3, help="What devices share, as ZeRO's stage.")
    ] = 0,
    devices: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="How many devices share it.")
    ] = 1,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; this machine's.")] = None,
    fit: Annotated[
        str | None, typer.Option("--fit", metavar="SIZE", help="A device's memory: 24GiB, 80GB.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Trace the activations instead of a closed form.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Foretell the memory of a training step, term by term, without loading the model.

    With `--fit`, also the largest batch, length and rank that fit, and the cheapest change that
    makes it fit; the exit code is 1 where it does not fit.

    Example: `tunemath memory path/to/model --method lora --set rank=16 --length 2048 --fit 24GiB`

    `tunemath memory config.json --method full --objective dpo --optimizer adamw_8bit --json`

    `tunemath memory config.json --peft-config adapter_config.json --logits all --precision plain`
    """
    from tunemath.budget import (
        DTYPES,
        MIXINGS,
        OPTIMIZERS,
        QUANTISATIONS,
        parse_size,
        this_device,
    )  # fmt: skip
    from tunemath.pipeline.costs import Precision
    from tunemath.pipeline.memory import Scenario, memory_product
    from tunemath.report.memory import memory_view

    for option, value, known in (
        ("--objective", objective, _OBJECTIVES),
        ("--dtype", dtype, (*DTYPES, None)),
        ("--precision", precision, MIXINGS),
        ("--quantise", quantise, (*QUANTISATIONS, None)),
        ("--optimizer", optimizer, OPTIMIZERS),
        ("--attention", attention, ("fused", "eager")),
        ("--logits", logits, ("tiles", "all")),
        ("--reference", reference, (*_REFERENCES, None)),
        ("--device", device, ("cpu", "cuda", None)),
    ):
        if value not in known:
            names = ", ".join(str(one) for one in known if one is not None)
            raise ContractError(f"{option} {value}: expected one of {names}")
    if reference is not None and objective != "dpo":
        raise ContractError(f"--reference {reference} has no meaning for --objective {objective}")
    micro_batch = batch if micro_batch is None else micro_batch
    if batch % micro_batch:
        raise ContractError(f"--micro-batch {micro_batch} does not divide --batch {batch}")
    if (supervised or 1) > length:
        raise ContractError(f"--supervised {supervised} is more than --length {length}")
    try:
        limit = None if fit is None else parse_size(fit)
    except ValueError as error:
        raise ContractError(f"--fit {error}") from None
    kind = cast(Any, device or this_device().kind)
    if dtype is None:
        dtype = "float32" if kind == "cpu" and precision == "autocast" else "bfloat16"
    if precision != "autocast" and dtype == "float32":
        raise ContractError(
            f"--precision {precision} has no meaning for --dtype float32, in which all is float32; "
            "leave one of them out"
        )
    blueprint, space, class_task = _subject(context, model, method, settings or (), peft_config)
    scenario = Scenario(
        blueprint=blueprint,
        space=space,
        class_task=class_task,
        tokens=length,
        supervised=supervised or length,
        batch=batch,
        micro_batch=micro_batch,
        objective=cast(Any, objective),
        precision=Precision(dtype, cast(Any, quantise), cast(Any, precision)),
        optimizer=optimizer,
        checkpointing=checkpointing,
        attention=cast(Any, attention),
        masked=masked,
        reference=cast(Any, reference),
        logits=cast(Any, logits),
        zero=cast(Any, zero),
        devices=devices,
        device=kind,
        trace=trace,
    )
    if precision == "plain" and scenario.unfreezes:
        raise ContractError(
            f"--precision plain has no meaning for --method {method}, which trains the base's own "
            "weights: their products need autocast, or pure"
        )
    product = {**_about(scenario), **memory_product(scenario, limit)}
    if as_json:
        print_json(product)
    else:
        show(memory_view(product))
    if product.get("fits") is False:
        raise typer.Exit(_DOES_NOT_FIT)


def _subject(
    context: typer.Context,
    model: str,
    method: str,
    settings: Sequence[str],
    peft_config: Path | None,
) -> tuple[Blueprint, UpdateSpace | AdapterConfig, str | None]:
    """Return the model, what is done to it, and PEFT's task where that chooses its class."""
    from tunemath.cli.count import blueprint_at, refuse_beside, unknown_words, unmatched_words
    from tunemath.space import parse_space
    from tunemath.space.peft import AdapterConfig, peft_change

    if peft_config is None:
        return blueprint_at(model, None), parse_space(method, settings), None
    for name, option in (("method", "--method"), ("settings", "--set")):
        refuse_beside(context, name, option)
    config = AdapterConfig.read(peft_config)
    for line in unknown_words(peft_config, config):
        say(line, err=True)
    task = config["task_type"]
    blueprint = blueprint_at(model, task)
    for name in peft_change(blueprint, config).unmatched:
        raise ContractError(unmatched_words(blueprint, config, name))
    return blueprint, config, task


def _about(scenario: Scenario) -> dict[str, Any]:
    from tunemath.pipeline.costs import saved_bytes

    ledger = scenario.ledger
    return {
        "model_type": scenario.blueprint.model_type,
        "architecture": scenario.blueprint.architecture,
        "method": scenario.method,
        "trainable": ledger.trainable,
        "total": ledger.total,
        "dtype": scenario.precision.dtype,
        "precision": scenario.precision.mixing,
        "quantisation": scenario.precision.quantisation,
        "optimizer": scenario.optimizer,
        "step_flops": scenario.flops,
        "saved_bytes": saved_bytes(ledger, scenario.precision.trained),
        "notes": [*ledger.notes, *_notes(scenario)],
    }


def _notes(scenario: Scenario) -> Iterator[str]:
    """Yield what is taken for granted, and could be otherwise."""
    precision = scenario.precision
    if precision.quantisation is not None and precision.held != precision.dtype:
        yield (
            "what is not quantised is float32, as PEFT's prepare_model_for_kbit_training leaves "
            f"it; with --precision plain it is {precision.dtype}"
        )
    if scenario.held.why:
        yield f"the activations are a guess: {scenario.held.why}"
