"""A model as data: every module that owns parameters, with its shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Literal, NamedTuple

from tunemath.errors import ModelError

__all__ = ["Blueprint", "Builder", "Kind", "Module", "Tensor"]

Kind = Literal["linear", "conv1d", "embedding", "norm", "conv", "experts", "attention", "other"]
"""What a module is.

``linear``: torch's Linear, weight (d_out, d_in). ``conv1d``: transformers' Conv1D of GPT-2, a
linear layer whose weight is (d_in, d_out). ``conv``: a real convolution. ``experts``: a mixture's
experts held as single tensors of three dimensions. ``attention``: torch's MultiheadAttention.
``other``: a module that owns parameters of its own, such as a class token.
"""

Tensor = tuple[str, tuple[int, ...]]
"""A parameter's name within its module, and its shape as the model uses it."""


class Module(NamedTuple):
    """A module that owns parameters, or whose weight is made from those of its submodules.

    Containers are told by the names alone.
    """

    name: str
    """As in the live model: ``model.layers.0.self_attn.q_proj``."""
    kind: Kind
    tensors: tuple[Tensor, ...]
    """Its own parameters, in the order of the live module; none if all lie in submodules."""
    weight: tuple[int, ...] | None = None
    """The weight's shape where it is made from other parameters, as by weight norm; else None."""
    groups: int | None = 1
    """Of a convolution, the groups that its channels fall into; None where shapes don't tell."""

    @property
    def short_name(self) -> str:
        """The last part of the name, such as q_proj."""
        return self.name.rpartition(".")[2]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight, or of the first parameter."""
        return self.weight or self.tensors[0][1]

    @property
    def d_in(self) -> int:
        """The width of a linear layer's input; of an embedding, the number of rows."""
        return self.shape[-1] if self.kind == "linear" else self.shape[0]

    @property
    def d_out(self) -> int:
        """The width of a linear layer's output; of an embedding, of a row."""
        return self.shape[0] if self.kind == "linear" else self.shape[-1]

    @property
    def bias(self) -> bool:
        """Whether it has a bias."""
        return any(name == "bias" for name, _ in self.tensors)

    @property
    def parameters(self) -> int:
        """The number of elements of its own parameters, tied ones included."""
        return sum(prod(shape) for _, shape in self.tensors)


@dataclass(frozen=True)
class Blueprint:
    """A model's modules and configuration. Counts are in parameters; a tied one is counted once."""

    model_type: str
    architecture: str
    """The class, such as LlamaForCausalLM."""
    modules: tuple[Module, ...]
    """Every `Module`, in the order of the live model's ``named_modules()``."""
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """config.json with the defaults of its model type; empty when only headers were there."""
    tied: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Parameters that are another one: ``{"lm_head.weight": "model.embed_tokens.weight"}``."""
    embedding: str = ""
    """The module of ``get_input_embeddings()``; empty where there is none."""
    head: str = ""
    """The module of ``get_output_embeddings()``; empty where there is none."""
    dtype: str = "float32"
    """The dtype that most parameters are stored in."""
    unlearnable: frozenset[str] = frozenset()
    """Parameters that the model itself holds frozen, such as fixed sinusoidal positions."""
    quantisation: str = ""
    """How the weights are quantised, such as ``gptq`` or ``bitsandbytes-4bit``; empty if not.

    ``dtype`` is then that of the weights which are not.
    """
    stored_bytes: int | None = field(default=None, compare=False)
    """The bytes of the weights as their files hold them, scales included; None without files."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What who reads the counts should know of how the model was read."""

    @property
    def parameters(self) -> int:
        """All parameters, as transformers' ``num_parameters()`` counts them."""
        return self._parameters

    @cached_property
    def _parameters(self) -> int:
        every = sum(module.parameters for module in self.modules)
        return every - sum(prod(shape) for name, shape in self.tensors() if name in self.tied)

    @cached_property
    def linears(self) -> tuple[Module, ...]:
        """Every linear layer but the head."""
        return tuple(m for m in self.modules if m.kind in _LINEAR and m.name != self.head)

    @property
    def linear_parameters(self) -> int:
        """The weights of all linear layers but the head, biases left out."""
        return sum(linear.d_in * linear.d_out for linear in self.linears)

    @cached_property
    def by_name(self) -> dict[str, Module]:
        """Each module by its full name."""
        return {module.name: module for module in self.modules}

    @cached_property
    def by_short_name(self) -> dict[str, tuple[Module, ...]]:
        """The modules of each last part of a name."""
        found: dict[str, list[Module]] = {}
        for module in self.modules:
            found.setdefault(module.short_name, []).append(module)
        return {name: tuple(modules) for name, modules in found.items()}

    @cached_property
    def containers(self) -> tuple[str, ...]:
        """Every name that other modules lie under, outermost first, the root left out."""
        seen: dict[str, None] = {}
        for module in self.modules:
            parts = module.name.split(".")
            for end in range(1, len(parts)):
                seen[".".join(parts[:end])] = None
        return tuple(seen)

    def under(self, name: str) -> Iterator[Module]:
        """Yield the module of that name and all that lie under it."""
        inside = f"{name}."
        return (m for m in self.modules if m.name == name or m.name.startswith(inside))

    def tensors(self) -> Iterator[Tensor]:
        """Yield the full name and shape of every parameter, tied ones included."""
        for module in self.modules:
            start = f"{module.name}." if module.name else ""
            for name, shape in module.tensors:
                yield start + name, shape

    @property
    def tied_head(self) -> bool:
        """Whether the head's weight is the embedding's."""
        return f"{self.head}.weight" in self.tied or f"{self.embedding}.weight" in self.tied

    @property
    def hidden(self) -> int:
        """D, the width of the residual stream."""
        return self._size("hidden_size", "n_embd", "d_model", "dim", "hidden_dim")

    @property
    def layers(self) -> int:
        """L, the number of transformer layers (of an encoder-decoder, of both)."""
        both = self.config.get("is_encoder_decoder", True)
        if "encoder_layers" in self.config and "decoder_layers" in self.config:
            if both:
                return self._size("encoder_layers") + self._size("decoder_layers")
            return self._size("decoder_layers")
        if both and self.config.get("num_decoder_layers"):
            return self._size("num_layers") + self._size("num_decoder_layers")
        return self._size("num_hidden_layers", "n_layer", "num_layers", "n_layers")

    @property
    def vocab(self) -> int:
        """V, the number of tokens."""
        return self._size("vocab_size")

    @property
    def heads(self) -> int:
        """H, the number of query heads."""
        return self._size("num_attention_heads", "n_head", "num_heads", "n_heads",
                          "decoder_attention_heads")  # fmt: skip

    @property
    def kv_heads(self) -> int:
        """K, the number of key and value heads."""
        if self.config.get("multi_query") and not self.config.get("new_decoder_architecture"):
            return 1
        return self._size("num_key_value_heads", "num_kv_heads", default=self.heads)

    @property
    def head_dim(self) -> int:
        """The width of one head."""
        return self._size("head_dim", "d_kv", default=self.hidden // self.heads)

    @property
    def intermediate(self) -> int:
        """I, the width inside the feed-forward block."""
        return self._size("intermediate_size", "n_inner", "d_ff", "ffn_dim", "decoder_ffn_dim",
                          default=4 * self.hidden)  # fmt: skip

    def _size(self, *keys: str, default: int | None = None) -> int:
        text = self.config.get("text_config")
        model = {**(text if isinstance(text, Mapping) else {}), **self.config}
        value = next((model[k] for k in keys if model.get(k) is not None), default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(
                f"the configuration of this {self.model_type or 'model'} has no usable "
                f"{' or '.join(keys)} ({value!r})"
            )
        return value


_LINEAR = ("linear", "conv1d")


class Builder:
    """Collects modules in the order in which the live model registers them.

    >>> build = Builder()
    >>> build.under("layers.0").linear("mlp.up_proj", 8, 32)
    >>> build.modules[0].name
    'layers.0.mlp.up_proj'
    """

    def __init__(self) -> None:
        self.modules: list[Module] = []
        self._prefix = ""

    def under(self, name: str) -> Builder:
        """Return a builder of the same modules, whose names begin with this one."""
        inner = Builder()
        inner.modules = self.modules
        inner._prefix = f"{self.full(name)}." if name else self._prefix
        return inner

    def full(self, name: str = "") -> str:
        """Return the whole name of a module; of this builder's own place without one."""
        return self._prefix + name if name else self._prefix[:-1]

    def linear(self, name: str, d_in: int, d_out: int, bias: bool = False) -> None:
        """Add a Linear: weight (d_out, d_in), bias (d_out,)."""
        self._add(name, "linear", (d_out, d_in), (d_out,) if bias else None)

    def conv1d(self, name: str, d_in: int, d_out: int) -> None:
        """Add transformers' Conv1D: weight (d_in, d_out), bias (d_out,)."""
        self._add(name, "conv1d", (d_in, d_out), (d_out,))

    def embedding(self, name: str, rows: int, width: int) -> None:
        """Add an Embedding: weight (rows, width)."""
        self._add(name, "embedding", (rows, width), None)

    def norm(self, name: str, width: int, bias: bool = False) -> None:
        """Add a norm: weight (width,), and a bias for LayerNorm."""
        self._add(name, "norm", (width,), (width,) if bias else None)

    def conv(
        self, name: str, out: int, inner: int, *kernel: int, bias: bool = True, groups: int = 1
    ) -> None:
        """Add a convolution: weight (out, inner, *kernel), inner inputs a group, bias (out,)."""
        self._add(name, "conv", (out, inner, *kernel), (out,) if bias else None, groups)

    def own(self, name: str, kind: Kind = "other", **tensors: Sequence[int]) -> None:
        """Add a module by its own parameters' shapes; without a name, this builder's own place."""
        shapes = tuple((key, tuple(shape)) for key, shape in tensors.items())
        self.modules.append(Module(self.full(name), kind, shapes))

    def _add(
        self,
        name: str,
        kind: Kind,
        weight: tuple[int, ...],
        bias: tuple[int, ...] | None,
        groups: int = 1,
    ) -> None:
        tensors: tuple[Tensor, ...] = (("weight", weight),)
        if bias is not None:
            tensors = (*tensors, ("bias", bias))
        self.modules.append(Module(self._prefix + name, kind, tensors, groups=groups))
