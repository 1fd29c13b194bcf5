"""A LoRA adapter out of two checkpoints: of each matrix's difference, the best of a given rank.

Let ΔW = W' − W. Its singular value decomposition, cut after r values, is the matrix of rank r that
is nearest to it; A and B are its two halves, with s = α/r = 1. One tensor is in memory at a time.

Source: Eckart and Young 1936; extraction as in mergekit and kohya-ss/sd-scripts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tunemath.errors import ModelError
from tunemath.space.blueprint import Blueprint, Module, read_blueprint
from tunemath.space.peft.config import AdapterConfig
from tunemath.space.peft.portable import shortest_targets
from tunemath.space.weights.adapter import (
    PREFIX,
    AdapterWriter,
    Layout,
    balanced,
    rank_patterns,
    saved_names,
)
from tunemath.space.weights.cuts import Cut, Extraction, Left
from tunemath.space.weights.names import stored_names
from tunemath.space.weights.pairing import Pair, Pairing, pair_up
from tunemath.space.weights.ranks import RankChoice, share_ranks, top_values, truncated
from tunemath.space.weights.writer import Planned

__all__ = ["Rest", "extract"]

Rest = Literal["none", "small", "all"]
_FIRST = 64


@dataclass(frozen=True)
class _Matrix:
    """A weight whose change the adapter factors."""

    module: Module
    pair: Pair

    @property
    def layout(self) -> Layout:
        kernel = self.pair.shape[1:] if self.module.kind == "conv" else ()
        return Layout(self.module.name, self.module.kind == "embedding", kernel)

    @property
    def shape(self) -> tuple[int, int]:
        shape = self.pair.shape
        if self.module.kind in ("conv1d", "embedding"):
            return shape[1], shape[0]
        return shape[0], math.prod(shape[1:])

    def change(self, pairing: Pairing) -> Tensor:
        """Return ΔW as (d_out, d_in), float32."""
        delta = _delta(pairing, self.pair)
        turned = self.module.kind in ("conv1d", "embedding")
        return delta.T if turned else delta.reshape(len(delta), -1)


def extract(
    base: Path,
    tuned: Path,
    out: Path,
    choice: RankChoice,
    *,
    rest: Rest = "small",
    embeddings: bool = False,
    dtype: str = "float32",
    base_name: str | None = None,
    tick: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Extraction:
    """Write a PEFT LoRA adapter to the folder ``out`` that moves ``base`` towards ``tuned``.

    ``rest`` says which changed tensors that are no such matrices are saved whole: none, the small
    ones (norms and biases), or all modules, with embeddings and head. ``embeddings`` has the
    embeddings and the head factored too, which a tied head forbids. ``base_name`` is what the
    adapter calls its base. Returns what it holds, with errors and bounds by module. Raises
    `ModelError` for checkpoints of two architectures, quantised weights, and two that do not
    differ.
    """
    pairing, blueprint = pair_up(base, tuned), read_blueprint(base)
    matrices, others = _sorted_out(pairing, blueprint, embeddings, tick)
    result = Extraction(notes=_notes(pairing))
    ranks = _shared(pairing, matrices, choice, tick) if choice.by == "parameters" else {}
    writer = AdapterWriter(out, getattr(torch, dtype))
    for done, each in enumerate(matrices):
        tick("factors", done, len(matrices))
        delta, name = each.change(pairing), each.module.name
        norm = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
        if choice.by == "parameters" and not ranks[name]:
            result.cuts.append(Cut(name, each.shape, 0, norm, 1.0, 1.0, 1.0, 0.0))
            continue
        fit = truncated(delta, choice, ranks.get(name))
        a, b = balanced(fit.left, fit.right, fit.singular_values, 1.0)
        del delta
        kept = writer.add(each.layout, a, b)
        values = norm, fit.relative_error, fit.bound, kept.share, kept.error
        result.cuts.append(Cut(name, each.shape, len(a), *values))
        result.parameters += len(a) * sum(each.shape)
    tick("factors", len(matrices), len(matrices))
    kept_ranks = {cut.name: cut.rank for cut in result.cuts if cut.rank}
    if not kept_ranks:
        raise ModelError(
            f"{tuned} and {base} differ in no matrix that the adapter could hold at "
            f"--{choice.by} {choice.value:g}; give a larger one, or two models that differ"
        )
    saved = _save_rest(writer, pairing, blueprint, others, set(kept_ranks), rest, result)
    writer.write(_config(blueprint, kept_ranks, saved, base_name or str(base)))
    return result


def _sorted_out(
    pairing: Pairing,
    blueprint: Blueprint,
    embeddings: bool,
    tick: Callable[[str, int, int], None],
) -> tuple[list[_Matrix], list[tuple[str, Pair]]]:
    """Return the matrices that changed and that LoRA can hold, and the other changed parameters."""
    live = {name: own for own, name in stored_names(pairing.base.tensors, blueprint).items()}
    modules = blueprint.by_name
    tied = {*blueprint.tied, *blueprint.tied.values()}
    matrices, others = [], []
    for done, pair in enumerate(pairing.pairs):
        tick("compare", done, len(pairing.pairs))
        if not pairing.differs(pair):
            continue
        name = live.get(pair.before, pair.before)
        _need_floats(pairing, pair)
        owner, _, last = name.rpartition(".")
        module = modules.get(owner)
        ends = {f"{blueprint.embedding}.weight", f"{blueprint.head}.weight"}
        wide = name in ends or (module is not None and module.kind == "embedding")
        fits = module is not None and last == "weight" and _fits(module) and not pair.resized
        if module is not None and fits and (not wide or (embeddings and name not in tied)):
            matrices.append(_Matrix(module, pair))
        else:
            others.append((name, pair))
    tick("compare", len(pairing.pairs), len(pairing.pairs))
    return matrices, others


def _fits(module: Module) -> bool:
    """Return whether PEFT's LoRA has a layer for it, and ΔW is one product of two factors."""
    if module.kind == "conv":
        return module.groups == 1 and len(module.shape) > 2
    return module.kind in ("linear", "conv1d", "embedding") and len(module.shape) == 2


def _need_floats(pairing: Pairing, pair: Pair) -> None:
    for weights, name in ((pairing.base, pair.before), (pairing.tuned, pair.after)):
        dtype = weights.tensors[name].dtype
        if not dtype.startswith(("F64", "F32", "F16", "BF16")):
            raise ModelError(
                f"{weights.folder}: {name} is stored as {dtype}, quantised; expected F32, F16 or "
                "BF16, give the unquantised model"
            )


def _delta(pairing: Pairing, pair: Pair) -> Tensor:
    """Return W' − W of the rows that both have, float32."""
    rows = slice(0, min(pair.shape[0], pair.other[0])) if pair.resized else None
    after = pairing.tuned.read(pair.after, rows).float()
    return after - pairing.base.read(pair.before, rows).float()


def _shared(
    pairing: Pairing,
    matrices: list[_Matrix],
    choice: RankChoice,
    tick: Callable[[str, int, int], None],
) -> dict[str, int]:
    """Return the ranks of a budget, from as many singular values as it turns out to need."""
    costs = {each.module.name: sum(each.shape) for each in matrices}
    least = {each.module.name: min(each.shape) for each in matrices}
    counts = {name: min(_FIRST, least[name]) for name in costs}
    values: dict[str, Any] = {}
    ranks, wanted = {}, dict(counts)
    while wanted:
        for done, each in enumerate(matrices):
            tick("singular values", done, len(matrices))
            if each.module.name in wanted:
                found = top_values(each.change(pairing), wanted[each.module.name])
                values[each.module.name] = found
                counts[each.module.name] = len(found)
        ranks = share_ranks(values, costs, int(choice.value))
        wanted = {
            name: min(2 * rank, least[name])
            for name, rank in ranks.items()
            if rank and rank == counts[name] < least[name]
        }
    return ranks


def _save_rest(
    writer: AdapterWriter,
    pairing: Pairing,
    blueprint: Blueprint,
    others: list[tuple[str, Pair]],
    targets: set[str],
    rest: Rest,
    result: Extraction,
) -> dict[str, Any]:
    """Save changed tensors that are no factors; return what the configuration says of them."""
    whole: set[str] = set()
    biases = False
    for name, pair in others:
        owner, _, last = name.rpartition(".")
        module = blueprint.by_name.get(owner)
        why, held = _kind(module, last, pair), False
        if pair.resized or module is None or _has_inner(blueprint, owner):
            held = False
        elif last == "bias" and module.kind in ("linear", "conv1d", "conv"):
            held = rest != "none"
            biases = biases or held
            if held:
                inside = f"{owner}.base_layer" if owner in targets else owner
                _put(writer, f"{PREFIX}{inside}.bias", pairing, pair)
        else:
            small = all(len(shape) < 2 for _, shape in module.tensors)
            held = rest == "all" or (rest == "small" and small)
            whole.update({owner} if held else ())
        norm = float(torch.linalg.vector_norm(_delta(pairing, pair), dtype=torch.float64))
        result.rest.append(Left(name, norm, held, why))
    heads = {
        head.rpartition(".")[0]: root.rpartition(".")[0]
        for head, root in blueprint.tied.items()
        if root.rpartition(".")[0] in whole
    }
    whole |= heads.keys()
    _put_modules(writer, pairing, blueprint, whole)
    saved: dict[str, Any] = {"bias": "all" if biases else "none"}
    if whole:
        every = set(blueprint.by_name) - whole
        saved["modules_to_save"] = saved_names(whole, every)
        saved["ensure_weight_tying"] = bool(heads)
    return saved


def _has_inner(blueprint: Blueprint, owner: str) -> bool:
    """Return whether a module has others inside, which saving it whole would replace too."""
    return any(name.startswith(f"{owner}.") for name in blueprint.by_name)


def _kind(module: Module | None, last: str, pair: Pair) -> str:
    if pair.resized:
        return f"resized from {pair.shape[0]} to {pair.other[0]} rows"
    if module is None:
        return "stored apart from the live model's parameters"
    return f"{module.kind} {last}" if module.kind != "other" else last


def _put_modules(
    writer: AdapterWriter, pairing: Pairing, blueprint: Blueprint, modules: set[str]
) -> None:
    """Save all parameters of some modules as the tuned model has them."""
    stored = stored_names(pairing.base.tensors, blueprint)
    pairs = {pair.before: pair for pair in pairing.pairs}
    for owner in sorted(modules):
        for last, _ in blueprint.by_name[owner].tensors:
            live = f"{owner}.{last}"
            name = stored.get(blueprint.tied.get(live, live))
            if name in pairs:
                _put(writer, f"{PREFIX}{owner}.{last}", pairing, pairs[name])


def _put(writer: AdapterWriter, key: str, pairing: Pairing, pair: Pair) -> None:
    writer.whole(key, Planned(writer.dtype, pair.shape), lambda: pairing.tuned.read(pair.after))


def _config(
    blueprint: Blueprint, ranks: dict[str, int], saved: dict[str, Any], base_name: str
) -> AdapterConfig:
    kinds = {blueprint.by_name[name].kind for name in ranks}
    causal = blueprint.architecture.endswith(("ForCausalLM", "LMHeadModel"))
    config = AdapterConfig(
        "LORA",
        **rank_patterns(ranks, dict.fromkeys(ranks, 1.0)),
        **saved,
        target_modules=sorted(ranks),
        task_type="CAUSAL_LM" if causal else None,
        base_model_name_or_path=base_name,
        fan_in_fan_out="conv1d" in kinds,
        inference_mode=True,
    )
    return config.having(**shortest_targets(blueprint, config, ranks))


def _notes(pairing: Pairing) -> list[str]:
    def some(names: tuple[str, ...]) -> Iterator[str]:
        yield ", ".join(names[:3]) + (" …" if len(names) > 3 else "")

    notes = []
    for names, which in ((pairing.only_base, "base"), (pairing.only_tuned, "tuned model")):
        notes += [f"only the {which} has {each}" for each in some(names) if names]
    return notes
