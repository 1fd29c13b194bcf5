"""From a model's blueprint and a change to what its passes keep: in closed form, or roughly.

The passes of Llama's relatives follow from their shapes; a model of another family, or a method
without a closed form, is taken for one like Llama where it can't be traced.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

from tunemath.budget import (
    Attention,
    Decoder,
    DecoderLayer,
    Linear,
    Mixing,
    Numbers,
    Quantisation,
)
from tunemath.space import Blueprint, Change, Ledger, Module
from tunemath.space.layers import place_of

__all__ = [
    "Precision",
    "Setting",
    "decoder_of",
    "head_weight",
    "layers_in",
    "rough_decoder_of",
    "virtual_places",
]

# Families whose blocks are Llama's: RMS norms before both modules, rotary embeddings, a gate.
_LLAMA_LIKE = ("llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3")
_FLOAT32 = 4
_HALF = 2


@dataclass(frozen=True)
class Precision:
    """In what numbers a model is held and computed."""

    dtype: str = "float32"
    """Of the products."""
    quantisation: Quantisation | None = None
    mixing: Mixing = "autocast"
    base: str | None = None
    """Of the weights that are neither trained nor quantised; None where it follows."""

    @property
    def element(self) -> int:
        """Bytes of a number in the products."""
        return _FLOAT32 if self.dtype == "float32" else _HALF

    @property
    def held(self) -> str:
        """The dtype of the weights that are neither trained nor quantised.

        PEFT's ``prepare_model_for_kbit_training`` leaves those beside quantised ones in float32.
        """
        prepared = self.quantisation is not None and self.mixing == "autocast"
        return self.base or ("float32" if prepared else self.dtype)

    @property
    def trained(self) -> int:
        """Bytes of a trained number, of its gradient and of its moments."""
        return self.element if self.mixing == "pure" else _FLOAT32

    def numbers(self, *, embedding_trained: bool = False) -> Numbers:
        """Return the bytes of a number in the passes."""
        stream = _FLOAT32 if self.held == "float32" else _HALF
        if embedding_trained:
            stream = max(stream, self.trained)
        quantised = self.quantisation in ("nf4", "nf4-double")
        return Numbers.of(self.element, self.mixing, stream=stream, quantised=quantised)


@dataclass(frozen=True)
class Setting:
    """How passes are computed, apart from what is trained."""

    precision: Precision = Precision()
    attention: Attention = "fused"
    masked: bool = False
    checkpointing: bool = False
    dropout: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    prompt_in_rows: bool = False
    """Whether each row has a prompt's places, as in PEFT, or all share them, as in a run."""


def head_weight(blueprint: Blueprint) -> str:
    """Return the name of the output layer's weight, or of the one that it is tied to."""
    name = f"{blueprint.head}.weight"
    return blueprint.tied.get(name, name)


def layers_in(blueprint: Blueprint) -> dict[tuple[str, int], list[Module]]:
    """Return the modules of each numbered layer by its stack and number, in order."""
    found: dict[tuple[str, int], list[Module]] = {}
    for module in blueprint.modules:
        place = place_of(module.name)
        if place is not None:
            found.setdefault(place, []).append(module)
    return found


def decoder_of(
    blueprint: Blueprint, change: Change, setting: Setting | None = None
) -> Decoder | None:
    """Return a decoder's activations in closed form; None for a family or method without one."""
    setting = setting or Setting()
    if blueprint.model_type not in _LLAMA_LIKE or not blueprint.head:
        return None
    update = _Update.of(blueprint, change)
    if update is None:
        return None
    live = update.from_the_start
    layers: list[DecoderLayer] = []
    for own in layers_in(blueprint).values():
        layers.append(_layer(blueprint, update, setting, own, live))
        live = layers[-1].live
    embedding, head = f"{blueprint.embedding}.weight", head_weight(blueprint)
    trained = setting.precision.trained
    size = trained * blueprint.vocab * blueprint.hidden
    return Decoder(
        layers=tuple(layers),
        numbers=setting.precision.numbers(embedding_trained=embedding in update.unfrozen),
        attention=setting.attention,
        masked=setting.masked,
        checkpointing=setting.checkpointing,
        device=setting.device,
        prompt=update.prompt,
        prompt_in_rows=setting.prompt_in_rows,
        final_norm_trained=any(name.count(".") == 2 and "norm" in name for name in update.unfrozen),
        first_gradients=size if head in update.unfrozen else 0,
        last_gradients=size if embedding in update.unfrozen and embedding != head else 0,
        last_scratch=size if embedding in update.unfrozen and embedding == head else 0,
    )


@dataclass(frozen=True)
class _Update:
    """A change by module: what the closed form needs of it."""

    unfrozen: frozenset[str]
    ranks: dict[str, int]
    dora: frozenset[str]
    bottlenecks: dict[str, int]
    added: dict[str, int]
    """Numbers that are added to a module, all trained."""
    prefix: int = 0
    prompt: int = 0
    from_the_start: bool = False

    @classmethod
    def of(cls, blueprint: Blueprint, change: Change) -> _Update | None:
        """Read a change; None where it holds what has no closed form here."""
        ranks: dict[str, int] = {}
        dora: set[str] = set()
        bottlenecks: dict[str, int] = {}
        added: dict[str, int] = {}
        for group in change.groups:
            shapes = {part.name: part.shape for part in group.parts}
            rank = shapes.get("lora_A.weight", (0,))[0]
            width = shapes.get("adapter.down.weight", (0,))[0]
            known = {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector.weight"}
            if not width and (not rank or set(shapes) - known):
                return None
            for module in group.modules:
                if module.kind != "linear" or module.name in ranks:
                    return None
                added[module.name] = added.get(module.name, 0) + group.trainable
                ranks[module.name] = rank
                if width:
                    bottlenecks[module.name] = width
                if "lora_magnitude_vector.weight" in shapes:
                    dora.add(module.name)
        virtual = virtual_places(blueprint, change)
        if virtual is None:
            return None
        tied = blueprint.tied
        return cls(
            frozenset(tied.get(name, name) for name in change.unfrozen),
            ranks, frozenset(dora), bottlenecks, added, *virtual,
            from_the_start=bool(change.shared)
            or f"{blueprint.embedding}.weight" in change.unfrozen,
        )  # fmt: skip


def virtual_places(blueprint: Blueprint, change: Change) -> tuple[int, int] | None:
    """Return the places of a prefix and of a prompt; None for another thing beside the model."""
    prefix = prompt = 0
    for each in change.shared:
        shapes = {part.name: part.shape for part in each.parts}
        rows = shapes.get("embedding.weight")
        if rows is None or len(rows) != 2:
            return None
        # A prompt's rows are as wide as the model's; so are those of a prefix that is projected.
        projected = any(name.startswith("transform") for name in shapes)
        if rows[1] == blueprint.hidden and not projected:
            prompt = rows[0]
        else:
            prefix = rows[0]
    return prefix, prompt


def _layer(
    blueprint: Blueprint, update: _Update, setting: Setting, own: list[Module], upstream: bool
) -> DecoderLayer:
    by_name = {module.short_name: module for module in own}

    def linear(*short: str) -> tuple[Linear, ...]:
        return tuple(
            Linear(
                module.d_in,
                module.d_out,
                rank=update.ranks.get(module.name, 0),
                dora=module.name in update.dora,
                dropout=setting.dropout,
                stores=setting.precision.quantisation == "int8",
                trained=f"{module.name}.weight" in update.unfrozen,
                bias_trained=f"{module.name}.bias" in update.unfrozen,
            )
            for module in (by_name[one] for one in short if one in by_name)
        )

    norms = [module for module in own if module.kind == "norm"]
    sizes = {f"{module.name}.{key}": prod(shape) for module in own for key, shape in module.tensors}
    added = sum(update.added.get(module.name, 0) for module in own)
    unfrozen = sum(size for key, size in sizes.items() if key in update.unfrozen)
    live = upstream or added + unfrozen > 0
    return DecoderLayer(
        attention=linear("q_proj", "k_proj", "v_proj", "qkv_proj"),
        output=linear("o_proj")[0],
        feed=linear("gate_proj", "up_proj", "gate_up_proj"),
        down=linear("down_proj")[0],
        heads=blueprint.heads,
        kv_heads=blueprint.kv_heads,
        head_dim=blueprint.head_dim,
        intermediate=blueprint.intermediate,
        norms_trained=any(f"{norm.name}.weight" in update.unfrozen for norm in norms),
        qk_norm="q_norm" in by_name,
        after_attention=update.bottlenecks.get(by_name["o_proj"].name, 0),
        after_feed=update.bottlenecks.get(by_name["down_proj"].name, 0),
        prefix=update.prefix + update.prompt * (not setting.prompt_in_rows),
        gradients=setting.precision.trained * (added + unfrozen),
        copies=added * _cast(setting.precision)
        + sum(_copied(setting.precision, module, update.unfrozen, live) for module in own),
        upstream=upstream,
    )


def _cast(precision: Precision) -> int:
    """Return the bytes of a float32 weight's copy for the products; 0 where there is none."""
    casts = precision.mixing == "autocast" and precision.element != _FLOAT32
    return precision.element if casts else 0


def _copied(precision: Precision, module: Module, unfrozen: frozenset[str], live: bool) -> int:
    """Return the bytes of a linear layer's weight as autocast casts it for both passes."""
    if module.kind not in ("linear", "conv1d"):
        return 0
    trained = f"{module.name}.weight" in unfrozen
    held = precision.held == "float32" and precision.quantisation is None and live
    return _cast(precision) * module.d_in * module.d_out * (trained or held)


# --- the rough guess


class Kept(NamedTuple):
    """What one adapted module keeps for the backward pass, in tensors of its own size.

    Numbers are those that its factors read: float32 without autocast.
    """

    inputs: float = 1
    """Of its input's size: d_in a token."""
    outputs: float = 0
    """Of its output's size: d_out a token."""
    weights: float = 0
    """Of its weight's size, whatever the tokens are: a ΔW that was formed, or a copy of W."""


# By PEFT's type, as traces of PEFT 0.21 show of those that can be traced, and as their layers' code
# says of the rest; another keeps its input, as a low-rank update does. An orthogonal one keeps what
# it rotates, HRA twice for each of its 8 reflections.
KEPT = {
    "ADAPTION_PROMPT": Kept(0),
    "BEFT": Kept(0),
    "BOFT": Kept(0.6, 0, 2),
    "DEFT": Kept(1.8),
    "FOURIERFT": Kept(1, 0, 1),
    "FROD": Kept(2, 1),
    "GLORA": Kept(0.25, 0, 0.5),
    "GRALORA": Kept(1.25),
    "HIRA": Kept(1, 0, 1),
    "HRA": Kept(1, 0, 16),
    "IA3": Kept(0.5, 0.5),
    "LN_TUNING": Kept(0),
    "LOHA": Kept(1, 0, 1),
    "LOKR": Kept(1, 0, 1),
    "MISS": Kept(0.25),
    "OFT": Kept(1, 0, 0.7),
    "OSF": Kept(1, 1, 2),
    "PEANUT": Kept(1, 0, 2),
    "PSOFT": Kept(0.1),
    "PVERA": Kept(0.4, 1),
    "RANDLORA": Kept(0, 1, 1),
    "ROAD": Kept(0, 2),
    "SHADOW": Kept(2),
    "SHIRA": Kept(1, 0, 1),
    "SUPERTUNING": Kept(0.25, 0, 0.5),
    "TINYLORA": Kept(0),
    "TRAINABLE_TOKENS": Kept(0),
    "VERA": Kept(0.1, 1),
    "WAVEFT": Kept(1, 0, 1),
}


def rough_decoder_of(ledger: Ledger, setting: Setting, peft_type: str = "LORA") -> Decoder:
    """Return a guess: a model like Llama, with what the change's own modules keep."""
    blueprint, precision = ledger.blueprint, setting.precision
    tied = blueprint.tied
    unfrozen = {tied.get(name, name) for name in ledger.change.unfrozen}
    numbers = precision.numbers(embedding_trained=f"{blueprint.embedding}.weight" in unfrozen)
    d, inner, count = blueprint.hidden, blueprint.intermediate, blueprint.layers
    query, narrow = (n * blueprint.head_dim for n in (blueprint.heads, blueprint.kv_heads))
    tokens, fixed = _kept_besides(ledger, precision, numbers, frozenset(unfrozen), peft_type)
    prefix, prompt = virtual_places(blueprint, ledger.change) or (0, 0)
    layer = DecoderLayer(
        attention=(Linear(d, query), Linear(d, narrow), Linear(d, narrow)),
        output=Linear(query, d),
        feed=(Linear(d, inner), Linear(d, inner)),
        down=Linear(inner, d),
        heads=blueprint.heads,
        kv_heads=blueprint.kv_heads,
        head_dim=blueprint.head_dim,
        intermediate=inner,
        gated=any("gate" in module.short_name for module in blueprint.linears),
        norms_trained=any(
            module.kind == "norm" and f"{module.name}.weight" in unfrozen
            for module in blueprint.modules
        ),
        prefix=prefix + prompt * (not setting.prompt_in_rows),
        gradients=precision.trained * ledger.trainable // count,
        copies=fixed // count,
        more=tokens // count,
    )
    return Decoder(
        (layer,) * count,
        numbers=numbers,
        attention=setting.attention,
        masked=setting.masked,
        checkpointing=setting.checkpointing,
        device=setting.device,
        prompt=prompt,
        prompt_in_rows=setting.prompt_in_rows,
    )


def _kept_besides(
    ledger: Ledger,
    precision: Precision,
    numbers: Numbers,
    unfrozen: frozenset[str],
    peft_type: str,
) -> tuple[int, int]:
    """Return the bytes a token, and the bytes once, that adapted and trained layers keep."""
    kept = KEPT.get(peft_type, Kept())
    tokens = fixed = 0.0
    for module, parts in _adapted(ledger.change):
        rank = min((min(shape) for shape in parts if len(shape) == 2), default=0)
        tokens += numbers.factors * (kept.inputs * module.d_in + kept.outputs * module.d_out + rank)
        fixed += precision.trained * kept.weights * module.d_in * module.d_out
        fixed += _cast(precision) * sum(map(prod, parts))
    for module in ledger.blueprint.linears:
        if f"{module.name}.weight" in unfrozen:
            tokens += numbers.factors * module.d_in
        fixed += _copied(precision, module, unfrozen, live=True)
    return round(tokens), round(fixed)


def _adapted(change: Change) -> Iterator[tuple[Module, list[tuple[int, ...]]]]:
    """Yield the linear layers that are given something trained, and its shapes."""
    for group in change.groups:
        shapes = [part.shape for part in group.parts if part.trainable]
        for module in group.modules:
            if shapes and module.kind in ("linear", "conv1d"):
                yield module, shapes
