"""Choice 1, the update space: what may change. A record for each family of methods."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from tunemath.errors import ContractError
from tunemath.plain_yaml import YamlProblemError, load_yaml
from tunemath.record import Record, explain
from tunemath.shown import clip, shown

__all__ = [
    "METHODS",
    "UNFREEZING",
    "AdapterSpace",
    "LastLayersSpace",
    "LoraSpace",
    "PrefixSpace",
    "PromptSpace",
    "UnfreezeSpace",
    "UpdateSpace",
    "parse_space",
    "read_space",
    "virtual_tokens",
]


class LoraSpace(Record):
    """LoRA, ``W + s·B A`` with ``A (r, d_in)``, ``B (d_out, r)``, ``s = α/r``; or DoRA.

    DoRA scales each row of ``W + s·B A`` to a trained length, which starts as the row's own.
    """

    method: Literal["lora", "dora"] = "lora"
    """`lora`: a low-rank update of each target. `dora`: the same, and a length for each row."""
    rank: int = Field(default=8, ge=1, le=65_536)
    """r, the rank of each update; no more than the smaller side of the targets' largest matrix."""
    alpha: float = Field(default=16.0, gt=0, le=1e6)
    """α; the update is scaled by α/r, or by α/√r with `rslora`."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """Which linear layers: `all-linear` (all but the head), or names such as [q_proj, v_proj]."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of A during training."""
    rslora: bool = False
    """Scale by α/√r instead of α/r."""

    @property
    def scale(self) -> float:
        """The factor s in ``ΔW = s·B A``."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class UnfreezeSpace(Record):
    """Weights of the model itself, by their kind; the others stay as they are."""

    method: Literal["full", "bitfit", "layernorm", "linear_probe"]
    """`full`: every weight. `bitfit`: biases. `layernorm`: norms. `linear_probe`: the head."""


class LastLayersSpace(Record):
    """The last layers of the model itself, and what comes after them but the output layer."""

    method: Literal["last_layers"]
    """`last_layers`: the last layers and the final norm."""
    layers: int = Field(default=1, ge=1, le=10_000)
    """How many layers, counted from the output."""
    head: bool = False
    """Train the output layer too; where it is tied, that is the input embedding as well."""


class AdapterSpace(Record):
    """Bottleneck adapters, ``h + s·W_up σ(W_down h)``, in every layer of a frozen model."""

    method: Literal["adapter"]
    """`adapter`: small networks within each layer."""
    style: Literal["houlsby", "pfeiffer", "parallel", "compacter"] = "pfeiffer"
    """`pfeiffer`: after feed-forward. `houlsby`: after attention too. `parallel`, `compacter`."""
    bottleneck: int = Field(default=64, ge=1, le=65_536)
    """m, the width inside."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """σ, the non-linearity."""
    bias: bool = True
    """Whether both layers have a bias."""
    scale: float | None = Field(default=None, gt=0, le=1e6)
    """s; 1 when not given, and 4 with `parallel`."""
    kronecker: int | None = Field(default=None, ge=1, le=1024)
    """n, the products in each matrix of `compacter`; 4 when not given."""

    @model_validator(mode="after")
    def _by_style(self) -> AdapterSpace:
        if self.scale is None:
            object.__setattr__(self, "scale", 4.0 if self.style == "parallel" else 1.0)
        if self.style == "compacter":
            if self.kronecker is None:
                object.__setattr__(self, "kronecker", 4)
        elif self.kronecker is not None:
            raise ValueError(f"kronecker has no meaning for style: {self.style}; remove it")
        return self


class PrefixSpace(Record):
    """Prefix tuning: trained keys and values before those of every layer, ``[K_p; K]``."""

    method: Literal["prefix"]
    """`prefix`: trained keys and values in every layer of a frozen model."""
    length: int = Field(default=16, ge=1, le=1_000_000)
    """P, the places of the prefix; fewer than the model has positions."""
    projection: bool = False
    """Compute keys and values from P embeddings by a network of two layers while training."""
    hidden: int | None = Field(default=None, ge=1, le=1_000_000)
    """The width inside that network; the width of all KV heads when not given."""
    init: Literal["vocabulary", "random"] | None = None
    """Start as P tokens of the `vocabulary`, or `random`ly as PEFT does, as `projection` must."""

    @model_validator(mode="after")
    def _by_projection(self) -> PrefixSpace:
        if self.hidden is not None and not self.projection:
            raise ValueError("hidden has no meaning without projection: true; remove it")
        if self.init is None:
            object.__setattr__(self, "init", "random" if self.projection else "vocabulary")
        elif self.projection and self.init != "random":
            raise ValueError("init: vocabulary is not possible with projection: true; remove it")
        return self


class PromptSpace(Record):
    """Prompt tuning: trained embeddings before those of the input."""

    method: Literal["prompt"]
    """`prompt`: trained embeddings before the input of a frozen model."""
    length: int = Field(default=16, ge=1, le=1_000_000)
    """P, the virtual tokens; fewer than the model has positions."""
    init: Literal["vocabulary", "random"] = "vocabulary"
    """`vocabulary`: start as P random tokens of the vocabulary. `random`: normal numbers."""


_RECORDS = (LoraSpace, UnfreezeSpace, LastLayersSpace, AdapterSpace, PrefixSpace, PromptSpace)

METHODS: tuple[str, ...] = tuple(
    name for record in _RECORDS for name in get_args(record.model_fields["method"].annotation)
)
"""Every value of `space.method`."""

UNFREEZING = (*get_args(UnfreezeSpace.model_fields["method"].annotation), "last_layers")
"""The methods that change weights of the model itself and add none."""


def _with_method(value: Any) -> Any:
    """Take LoRA where no method is named, and refuse one that is not known."""
    if not isinstance(value, dict):
        return value
    method = value.get("method", "lora")
    if isinstance(method, str) and method in METHODS:
        return {"method": method, **value}
    given = clip(method, 80) if isinstance(method, str) else shown(method)
    near = difflib.get_close_matches(given, METHODS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(METHODS)}"
    raise ValueError(f"method {given!r} is not known; {hint}")


UpdateSpace = Annotated[
    LoraSpace | UnfreezeSpace | LastLayersSpace | AdapterSpace | PrefixSpace | PromptSpace,
    Field(discriminator="method"),
    BeforeValidator(_with_method),
]
"""What may change: one of the records above, chosen by its ``method``."""


class _Holder(Record):
    space: UpdateSpace


def virtual_tokens(space: UpdateSpace) -> int:
    """Return the positions that a method takes of every row: the length of a prefix or prompt."""
    return space.length if isinstance(space, PrefixSpace | PromptSpace) else 0


def parse_space(method: str, settings: Sequence[str] = ()) -> UpdateSpace:
    """Return the record of a method from settings such as ``rank=16``, read as YAML.

    >>> parse_space("adapter", ["bottleneck=8"]).bottleneck
    8
    """
    values: dict[str, Any] = {}
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not key.strip():
            raise ContractError(f"--set {clip(setting, 80)}: expected key=value, as in rank=16")
        try:
            values[key.strip()] = load_yaml(text)
        except YamlProblemError:
            values[key.strip()] = text
    return read_space({**values, "method": method})


def read_space(values: Mapping[str, Any]) -> UpdateSpace:
    """Return the record that has these values, as ``model_dump`` or a file gives them."""
    try:
        return _Holder.model_validate({"space": dict(values)}).space
    except ValidationError as error:
        raise ContractError(explain(error, _Holder)) from None
