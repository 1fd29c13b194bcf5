"""Quantised checkpoints: from the tensors as they are stored to the parameters they stand for.

Each format packs a weight in its own way and lays scales beside it; ``forms`` has their layouts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tunemath.space.blueprint.forms import Read, forms_of, strange
from tunemath.space.checkpoint import TensorHeader

__all__ = ["Weight", "declared_quantisation", "is_buffer", "logical_weights", "main_dtype",
           "main_form", "refuse_packed"]  # fmt: skip


class Weight(NamedTuple):
    """A parameter: the shape that the model uses, and how it is stored."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors writes it; of a packed weight, the dtype of the packed elements."""
    nbytes: int
    """The bytes as stored, scales and zero points included."""
    form: str = ""
    """The quantisation, such as ``gptq``; empty where there is none."""


# What lies beside a weight, by the last part of its name: q_proj.qzeros belongs to q_proj.weight.
_BESIDE = frozenset(
    ("SCB", "weight_format", "qweight", "qzeros", "scales", "g_idx", "input_scale",
     "input_zero_point", "input_global_scale", "output_scale", "activation_scale",
     "qscale_weight", "qscale_act", "W_q", "scale", "zero", "shape", "nbits", "group_size",
     "axis", "packing", "channel_wise", "optimize", "round_zero", "view_as_float",
     "unpack_view_dtype", "compute_dtype", "quant_scale", "quant_zero", "offload_meta",
     "stores_quant_config", "encoded_state_dict", "compressed", "bitmask", "row_offsets")
)  # fmt: skip
# What lies under a weight: q_proj.weight.absmax belongs to q_proj.weight.
_UNDER = frozenset(("absmax", "quant_map", "nested_absmax", "nested_quant_map"))
# Endings: q_proj.weight_scale belongs to q_proj.weight, gate_up_proj_blocks to gate_up_proj.
_ENDINGS = ("_scale_inv", "_global_scale", "_scale", "_scale_2", "_zero_point", "_g_idx", "_shape",
            "_packed", "_blocks", "_scales")  # fmt: skip

_INTEGERS = frozenset(("U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"))
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip


def logical_weights(headers: Mapping[str, TensorHeader], read: Read) -> dict[str, Weight]:
    """Return the parameters that the stored tensors stand for, by name.

    ``read`` gives a small tensor's bytes; some formats keep the shape of a packed weight in one.
    What belongs to no quantised weight is returned as it is.
    """
    weights: dict[str, Weight] = {}
    beside: dict[str, dict[str, str]] = {}
    for name, header in headers.items():
        owner, part = _owner(name)
        if part:
            beside.setdefault(owner, {})[part] = name
        else:
            weights[name] = Weight(header.shape, header.dtype, header.nbytes)
    for owner, names in beside.items():
        stored = {part: headers[name] for part, name in names.items()}
        if owner in headers:
            stored["weight"] = headers[owner]
        found = _unpacked(owner, stored, read)
        if found is None:
            for name in names.values():
                weights[name] = Weight(
                    headers[name].shape, headers[name].dtype, headers[name].nbytes
                )
        else:
            weights[owner] = found
    return weights


def _owner(name: str) -> tuple[str, str]:
    """Return the weight that a tensor describes and what it says of it; its own name otherwise."""
    head, _, key = name.rpartition(".")
    if key in _BESIDE:
        return f"{head}.weight", key
    if key in _UNDER:
        return head, key
    if key.startswith("bitsandbytes__"):
        return head.removesuffix(".quant_state"), "quant_state"
    if key.endswith(_ENDINGS):
        ending = next(ending for ending in _ENDINGS if key.endswith(ending))
        return name.removesuffix(ending), ending
    return name, ""


def _unpacked(name: str, stored: Mapping[str, TensorHeader], read: Read) -> Weight | None:
    """Return the weight that a group of tensors stands for; None where it is not quantised."""
    for form, parts, shape_of in forms_of(frozenset(stored)):
        shape = shape_of(name, stored, read)
        if shape is not None:
            nbytes = sum([header.nbytes for header in stored.values()])
            return Weight(shape, stored[parts[0]].dtype, nbytes, form)
    return None


def refuse_packed(weights: Mapping[str, Weight]) -> None:
    """Refuse integers that no form explains: packed weights of a layout that is not known.

    ``weights`` are without the buffers that are known by name; what `is_buffer` tells besides is
    let through when it is a vector, which packs nothing.
    """
    for name, weight in weights.items():
        packs = name.endswith("weight") or sum(side > 1 for side in weight.shape) > 1
        if packs and is_buffer(weight):
            raise strange(name, f"integers {weight.dtype}{[*weight.shape]} for a weight")


def is_buffer(weight: Weight) -> bool:
    """Whether a tensor is no parameter: integers that are not quantised numbers are none."""
    return not weight.form and weight.dtype in _INTEGERS


def main_form(weights: Iterable[Weight]) -> str:
    """Return the quantisation that most bytes are in; empty where nothing is quantised."""
    counts: Counter[str] = Counter()
    for weight in weights:
        counts[weight.form] += weight.nbytes if weight.form else 0
    form, nbytes = max(counts.items(), key=lambda item: item[1], default=("", 0))
    return form if nbytes else ""


def main_dtype(weights: Iterable[Weight]) -> str | None:
    """Return the dtype that most parameters outside the quantised ones are stored in."""
    counts: Counter[str] = Counter()
    for weight in weights:
        if not weight.form:
            counts[weight.dtype] += math.prod(weight.shape)
    return next((_DTYPES[d] for d, _ in counts.most_common() if d in _DTYPES), None)


def declared_quantisation(config: Mapping[str, Any]) -> str:
    """Return the quantisation that a configuration names, in the words of `logical_weights`.

    Empty where it names none, as an unquantised model's ``{"quant_method": null}`` does.

    >>> declared_quantisation({"quantization_config": {"quant_method": "gptq", "bits": 4}})
    'gptq'
    """
    settings = config.get("quantization_config")
    if not isinstance(settings, Mapping):
        return ""
    if settings.get("load_in_4bit"):
        return "bitsandbytes-4bit"
    if settings.get("load_in_8bit"):
        return "bitsandbytes-8bit"
    method = settings.get("quant_method")
    return method if isinstance(method, str) else ""
