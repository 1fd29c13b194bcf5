"""A model as data: its shapes, read from config.json and the headers of its weights.

Enough to count, to plan and to name what may change, without loading a model. Llama-like
decoders and GPT-2 are read; what the reader doesn't know it refuses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunemath.errors import ModelError
from tunemath.space.checkpoint import TensorHeader, read_json, read_tensor_headers

__all__ = ["Blueprint", "Linear", "read_blueprint"]

_HEADS = frozenset({"lm_head", "embed_out"})
_EMBEDDINGS = frozenset({"embed_tokens", "wte", "wpe", "embed_in", "embed_positions"})
# Constants that older checkpoints carry among the weights.
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
# Where config.json leaves tie_word_embeddings out, these models tie.
_TIED_BY_DEFAULT = frozenset({"gpt2", "gemma", "gemma2", "gemma3_text"})
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Linear:
    """A linear layer: the name of its module in the live model, and its shape."""

    name: str
    d_in: int
    d_out: int
    bias: bool

    @property
    def short_name(self) -> str:
        """The last part of the name, such as q_proj."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Blueprint:
    """A model's shapes. Counts are in parameters; a tied head is counted once."""

    model_type: str
    architecture: str
    hidden: int
    layers: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    tied: bool
    dtype: str
    linears: tuple[Linear, ...]
    """Every linear layer but the head."""
    parameters: int
    """All parameters, as transformers' ``num_parameters()`` counts them."""

    @property
    def linear_parameters(self) -> int:
        """The weights of all linear layers but the head, biases left out."""
        return sum(linear.d_in * linear.d_out for linear in self.linears)


def read_blueprint(folder: str | Path) -> Blueprint:
    """Return the blueprint of a Hugging Face model folder.

    ``folder`` holds config.json and model.safetensors, or an index and its shards. Reads no
    weight, only headers.

    Valid when the model is a dense decoder whose linear layers are the two-dimensional weights
    other than embeddings and head. Mixtures of experts, quantised weights and models of several
    parts are refused.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder; give the folder that holds config.json")
    if not (folder / "config.json").exists():
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
        raise ModelError(f"{folder} has no config.json (found {names}); give a model's folder")
    config = read_json(folder / "config.json")
    model_type = str(config.get("model_type", ""))
    tensors = {
        _live_name(name, model_type): header
        for name, header in read_tensor_headers(folder).items()
        if not name.endswith(_BUFFERS)
    }
    _refuse_unknown(folder, config, tensors)
    shapes = _config_shapes(folder, config)
    _check_embedding(folder, tensors, shapes["vocab"], shapes["hidden"])
    tied = _is_tied(config, model_type, tensors)
    return Blueprint(
        model_type=model_type,
        architecture=str((config.get("architectures") or [""])[0]),
        **shapes,
        tied=tied,
        dtype=_main_dtype(folder, tensors),
        linears=_linears(tensors, transposed=model_type == "gpt2"),
        parameters=sum(
            header.size for name, header in tensors.items() if not (tied and _part(name) in _HEADS)
        ),
    )


def _live_name(name: str, model_type: str) -> str:
    """Return a tensor's name in the live model; GPT-2's own checkpoints leave a prefix out."""
    if model_type == "gpt2" and not name.startswith(("transformer.", "lm_head.")):
        return f"transformer.{name}"
    return name


def _part(name: str) -> str:
    """Return the module's own name: ``q_proj`` of ``model.layers.0.self_attn.q_proj.weight``."""
    return name.rpartition(".")[0].rpartition(".")[2]


def _linears(tensors: Mapping[str, TensorHeader], transposed: bool) -> tuple[Linear, ...]:
    """Return the linear layers; GPT-2's Conv1D stores (d_in, d_out), all others (d_out, d_in)."""
    found = []
    for name, header in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind != "weight" or len(header.shape) != 2 or _part(name) in _HEADS | _EMBEDDINGS:
            continue
        d_in, d_out = header.shape if transposed else header.shape[::-1]
        found.append(Linear(module, d_in, d_out, bias=f"{module}.bias" in tensors))
    return tuple(sorted(found, key=lambda linear: _natural(linear.name)))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _is_tied(config: Mapping[str, Any], model_type: str, tensors: Mapping[str, Any]) -> bool:
    """Tied when the checkpoint has no head of its own, or the config says so."""
    if not any(_part(name) in _HEADS for name in tensors):
        return True
    return bool(config.get("tie_word_embeddings", model_type in _TIED_BY_DEFAULT))


def _config_shapes(folder: Path, config: Mapping[str, Any]) -> dict[str, int]:
    def read(*keys: str, default: int | None = None) -> int:
        value = next((config[key] for key in keys if config.get(key) is not None), default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(
                f"{folder / 'config.json'} has no usable {' or '.join(keys)} ({value!r}); "
                "expected a decoder's configuration"
            )
        return value

    hidden = read("hidden_size", "n_embd")
    heads = read("num_attention_heads", "n_head")
    return {
        "hidden": hidden,
        "layers": read("num_hidden_layers", "n_layer"),
        "vocab": read("vocab_size"),
        "heads": heads,
        "kv_heads": read("num_key_value_heads", default=heads),
        "head_dim": read("head_dim", default=hidden // heads),
        "intermediate": read("intermediate_size", "n_inner", default=4 * hidden),
    }


def _refuse_unknown(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]
) -> None:
    expert = next((name for name in tensors if ".experts." in name), None)
    if expert:
        raise ModelError(
            f"{folder} is a mixture of experts ({expert}), which can't be planned yet; "
            "use a dense model"
        )
    if "quantization_config" in config:
        raise ModelError(
            f"{folder} has quantised weights (quantization_config in config.json); "
            "use the model's unquantised version"
        )
    if "text_config" in config:
        raise ModelError(
            f"{folder} is a model of several parts (text_config in config.json), which can't be "
            "planned yet; use a text-only model"
        )


def _check_embedding(
    folder: Path, tensors: Mapping[str, TensorHeader], vocab: int, hidden: int
) -> None:
    """Hold config.json against the weights; a folder put together from two models shows here."""
    for name, header in tensors.items():
        if _part(name) in {"embed_tokens", "wte"} and header.shape != (vocab, hidden):
            raise ModelError(
                f"{folder}: config.json says {vocab} tokens × {hidden}, but {name} is "
                f"{header.shape}; config and weights are not of one model"
            )


def _main_dtype(folder: Path, tensors: Mapping[str, TensorHeader]) -> str:
    """Return the dtype that most parameters are stored in."""
    counts: Counter[str] = Counter()
    for header in tensors.values():
        counts[header.dtype] += header.size
    if not counts:
        raise ModelError(f"{folder} has a weights file without a tensor; download it again")
    dtype = counts.most_common(1)[0][0]
    if dtype not in _DTYPES:
        raise ModelError(
            f"{folder} stores its weights as {dtype}; expected one of {', '.join(_DTYPES)}. "
            "Use the model's unquantised version"
        )
    return _DTYPES[dtype]
