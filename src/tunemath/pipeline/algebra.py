"""Deltas taken out of models, cut and combined: folders that appear whole, with their record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunemath.contract import FineTune, ModelChoice
from tunemath.errors import ContractError, ModelError
from tunemath.pipeline.products import base_at
from tunemath.runner.origins import trained_on
from tunemath.runner.progress import Progress, silent
from tunemath.runner.resolve import ResolvedModel, resolve_model, weights_hash
from tunemath.space.weights.carried import carry
from tunemath.space.weights.provenance import Provenance, Source, read_provenance
from tunemath.storage import new_folder, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunemath.space.weights.extract import Rest
    from tunemath.space.weights.mixing import Mix
    from tunemath.space.weights.ranks import RankChoice

__all__ = ["CombineOptions", "ExtractOptions", "combine_models", "extract_lora", "resize_lora"]

_ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class ExtractOptions:
    """What goes into an extracted adapter beside the matrices, and how it is stored."""

    rest: Rest = "small"
    embeddings: bool = False
    dtype: str = "float32"


@dataclass(frozen=True)
class CombineOptions:
    """What is measured against, how an adapter is cut, and how the product is stored."""

    base: str | None = None
    choice: RankChoice | None = None
    dtype: str | None = None


def extract_lora(
    base: str,
    tuned: str,
    out: Path,
    choice: RankChoice,
    options: ExtractOptions | None = None,
    progress: Progress = silent,
    probe: bool = True,
) -> dict[str, Any]:
    """Write the LoRA adapter that moves ``base`` towards ``tuned``; return what it holds.

    Both are folders, ids on the hub, or the embedded model's name. With ``probe`` the adapter is
    read back, and its logits compared with theirs. Raises `ModelError` where the tuned model's
    record says that it comes from another base.
    """
    from tunemath.space.weights.extract import extract

    options = options or ExtractOptions()
    model, after = base_at(base), base_at(tuned).folder
    before = model.folder
    sources = [_source("base", base, before), _source("tuned", tuned, after)]
    _refuse_other_base(after, sources[0])
    settings = {choice.by: choice.value, **vars(options)}
    with _product(out, "extract", sources, settings) as (folder, proof):
        found = extract(
            before,
            after,
            folder,
            choice,
            rest=options.rest,
            embeddings=options.embeddings,
            dtype=options.dtype,
            base_name=base,
            tick=progress,
        )
        for source in (before, after):
            carry(source, folder, config=False)
        proof.update(found.summary())
        if probe:
            proof["logits"] = _logits(folder, {tuned: after, base: before}, model, progress)
    return {"folder": str(out), **proof}


def resize_lora(
    adapter: Path,
    out: Path,
    choice: RankChoice,
    dtype: str | None = None,
    progress: Progress = silent,
    base: str | None = None,
    probe: bool = True,
) -> dict[str, Any]:
    """Write a LoRA adapter cut to other ranks; return the error of each module.

    With ``probe`` both adapters' logits are compared on ``base``, or on the base that the adapter
    names where that is on this machine.
    """
    from tunemath.space.weights.resize import resize

    _need_adapter(adapter)
    sources = [*_recorded_base(adapter), _source("adapter", str(adapter), adapter)]
    if base is not None:
        given = _source("base", base, base_at(base).folder)
        _refuse_other_base(adapter, given)
        sources = [given, *sources[-1:]]
    settings = {choice.by: choice.value, "dtype": dtype}
    with _product(out, "resize", sources, settings) as (folder, proof):
        proof.update(resize(adapter, folder, choice, dtype=dtype, tick=progress).summary())
        carry(adapter, folder, config=False)
        if probe:
            proof["logits"] = _logits_on_base(folder, {str(adapter): adapter}, base, progress)
    return {"folder": str(out), **proof}


def combine_models(
    names: Sequence[str],
    out: Path,
    mix: Mix,
    options: CombineOptions | None = None,
    progress: Progress = silent,
    probe: bool = True,
) -> dict[str, Any]:
    """Write the combination of several models, or of several adapters; return its proof.

    With ``probe`` its logits are compared with those of each, and of the base where it is known.
    Raises `ModelError` where some are adapters and others models, or where their records name
    different bases.
    """
    options = options or CombineOptions()
    are_adapters = [(Path(name) / _ADAPTER).is_file() for name in names]
    if len(set(are_adapters)) > 1:
        adapter = names[are_adapters.index(True)]
        raise ModelError(
            f"{adapter} is an adapter, and {names[are_adapters.index(False)]} a model; give one "
            "kind, after `tunemath merge` or `tunemath extract`"
        )
    folders = [Path(name) if are_adapters[0] else base_at(name).folder for name in names]
    role = "adapter" if are_adapters[0] else "tuned"
    sources = [_source(role, *each) for each in zip(names, folders, strict=True)]
    if options.base is not None:
        sources = [_source("base", options.base, base_at(options.base).folder), *sources]
    sources = _with_one_base(sources, folders)
    settings = {**vars(mix), "base": options.base, "dtype": options.dtype}
    if options.choice is not None:
        settings[options.choice.by] = options.choice.value
    with _product(out, "combine", sources, settings) as (folder, proof):
        combined = _adapters if are_adapters[0] else _checkpoints
        proof.update(combined(folders, folder, mix, options, progress))
        beside = dict(zip(names, folders, strict=True))
        if probe and are_adapters[0]:
            proof["logits"] = _logits_on_base(folder, beside, options.base, progress)
        elif probe:
            if options.base is not None:
                beside[options.base] = base_at(options.base).folder
            proof["logits"] = _logits(folder, beside, None, progress)
    return {"folder": str(out), **proof}


def _adapters(
    folders: Sequence[Path], out: Path, mix: Mix, options: CombineOptions, progress: Progress
) -> dict[str, Any]:
    from tunemath.space.weights.stacking import combine_adapters

    tick = _as("modules", progress)
    found = combine_adapters(
        folders, out, mix, choice=options.choice, dtype=options.dtype, tick=tick
    )
    carry(folders[0], out, config=False)
    return found.summary()


def _checkpoints(
    folders: Sequence[Path], out: Path, mix: Mix, options: CombineOptions, progress: Progress
) -> dict[str, Any]:
    from tunemath.space.weights.combine import combine

    if options.choice is not None:
        raise ContractError("a rank is for adapters; of models, `tunemath extract` takes one out")
    base = base_at(options.base).folder if options.base is not None else None
    tick = _as("tensors", progress)
    found = combine(folders, out, mix, base=base, dtype=options.dtype, tick=tick)
    # The first model's over the base's, since its answers are shaped by its own template.
    for source in (base, folders[0]) if base is not None else (folders[0],):
        carry(source, out)
    return found.summary()


def _as(what: str, progress: Progress) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)


def _logits(
    product: Path, sources: Mapping[str, Path], base: ResolvedModel | None, progress: Progress
) -> dict[str, Any]:
    """Return a product's logits beside its sources', or why they can't be had here."""
    from tunemath.runner.behaving import Unmeasured, behaviour

    try:
        return behaviour(product, sources, base, progress)
    except Unmeasured as why:
        return {"unmeasured": str(why)}


def _logits_on_base(
    product: Path, adapters: Mapping[str, Path], base: str | None, progress: Progress
) -> dict[str, Any]:
    """Return an adapter's logits beside those of the adapters that it was made of, and the base's.

    The base is the one given, else the one that the first adapter names, if it is on this machine.
    """
    try:
        model = base_at(base) if base is not None else _named_base(next(iter(adapters.values())))
    except (ModelError, ContractError) as why:
        return {"unmeasured": f"{why}; --base gives the model to compare on"}
    name = model.reference if base is None else base
    return _logits(product, {**adapters, name: model.folder}, model, progress)


def _named_base(adapter: Path) -> ResolvedModel:
    """Return the base that an adapter names, without asking the hub.

    A folder ``./NAME`` is looked for here and beside the adapter; of an update in a run's folder
    the run's contract says where its base is. Raises `ModelError` where it names none, or one that
    is not here or has other weights.
    """
    recorded = _recorded_base(adapter)
    config = read_json(adapter / _ADAPTER)
    names = [*(source.name for source in recorded), config.get("base_model_name_or_path") or ""]
    name = next(filter(None, names), None)
    if name is None:
        raise ModelError(f"{adapter} names no base")
    place = name
    if name.startswith("./") and not Path(name).is_dir():
        beside = adapter.resolve().parent / name
        place = str(beside) if beside.is_dir() else _base_of_run(adapter) or name
    model = resolve_model(ModelChoice.named(place), download=False)
    for source in recorded:
        if model.weights_hash() != source.sha256:
            raise ModelError(f"{place} has other weights now than {adapter} was made from")
    return model


def _base_of_run(adapter: Path) -> str | None:
    contract = adapter.resolve().parent / "contract.yaml"
    return FineTune.load(contract).model.id if contract.is_file() else None


def _need_adapter(folder: Path) -> None:
    if not (folder / _ADAPTER).is_file():
        raise ModelError(f"{folder} has no {_ADAPTER}; give the folder of a LoRA adapter")


def _source(role: Literal["base", "adapter", "tuned"], name: str, folder: Path) -> Source:
    return Source(role, name, weights_hash(folder, anew=True))


def _recorded_base(folder: Path) -> tuple[Source, ...]:
    """Return the base that weights were made from; none where nothing is recorded."""
    record = read_provenance(folder)
    if record is not None and record.of("base"):
        return record.of("base")
    trained = trained_on(folder)
    return (trained,) if trained is not None else ()


def _refuse_other_base(folder: Path, base: Source) -> None:
    for recorded in _recorded_base(folder):
        if recorded.sha256 != base.sha256:
            raise ModelError(
                f"{folder} was made from {recorded.name} with SHA-256 {recorded.sha256[:12]}…, and "
                f"{base.name} has other weights ({base.sha256[:12]}…); give the base that it was "
                "made from"
            )


def _with_one_base(sources: list[Source], folders: Sequence[Path]) -> list[Source]:
    """Return the sources with the base that all have in common, as far as it is known."""
    known = [source for source in sources if source.role == "base"]
    for folder in folders:
        for base in known:
            _refuse_other_base(folder, base)
        known = known or list(_recorded_base(folder))
    return sources if sources[0].role == "base" else [*known, *sources]


@contextmanager
def _product(
    out: Path, operation: str, sources: Sequence[Source], settings: Mapping[str, Any]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Fill the folder and the proof that are given inside; both appear whole, or not at all."""
    proof: dict[str, Any] = {}
    with new_folder(out) as folder:
        yield folder, proof
        Provenance(operation, tuple(sources), dict(settings), proof).write(folder)
