"""Quantised checkpoints: from the tensors as they are stored to the parameters they stand for.

Each format packs a weight in its own way and lays scales beside it. Sources of the layouts:
bitsandbytes/functional.py (QuantState.as_dict), AutoGPTQ's qlinear_exllama.py, AutoAWQ's gemm.py
and gemv.py, compressed-tensors' pack_quantized.py and fp4_quantized.py, hqq/core/quantize.py,
transformers' integrations/{mxfp4,finegrained_fp8,bitnet}.py.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from tunemath.errors import ModelError
from tunemath.space.checkpoint import TensorHeader

__all__ = ["Weight", "declared_quantisation", "logical_weights", "main_dtype", "main_form"]

Read = Callable[[TensorHeader], bytes]
Stored = Mapping[str, TensorHeader]
Form = tuple[str, tuple[str, str], Callable[[str, Stored, Read], tuple[int, ...] | None]]


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
     "stores_quant_config", "encoded_state_dict")
)  # fmt: skip
# What lies under a weight: q_proj.weight.absmax belongs to q_proj.weight.
_UNDER = frozenset(("absmax", "quant_map", "nested_absmax", "nested_quant_map"))
# Endings: q_proj.weight_scale belongs to q_proj.weight, gate_up_proj_blocks to gate_up_proj.
_ENDINGS = ("_scale_inv", "_global_scale", "_scale", "_scale_2", "_zero_point", "_g_idx", "_shape",
            "_packed", "_blocks", "_scales")  # fmt: skip

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


def _unpacked(name: str, stored: Stored, read: Read) -> Weight | None:
    """Return the weight that a group of tensors stands for; None where it is not quantised."""
    for form, (main, _), shape_of in _forms_of(frozenset(stored)):
        shape = shape_of(name, stored, read)
        if shape is not None:
            nbytes = sum([header.nbytes for header in stored.values()])
            return Weight(shape, stored[main].dtype, nbytes, form)
    return None


@cache
def _forms_of(parts: frozenset[str]) -> tuple[Form, ...]:
    """Return the forms that a group of tensors may have, by what it holds."""
    return tuple(form for form in _FORMS if parts.issuperset(form[1]))


def _bitsandbytes_4bit(name: str, stored: Stored, read: Read) -> tuple[int, ...]:
    """Two values a byte in one column; the shape is in a short JSON stored as bytes."""
    state = read(stored["quant_state"])
    try:
        shape = json.loads(state)["shape"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _strange(name, "a quant_state without a shape") from None
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        raise _strange(name, f"a quant_state of shape {shape!r}")
    return _held(name, tuple(shape), 4, stored["weight"])


def _unchanged(name: str, stored: Stored, read: Read) -> tuple[int, ...]:
    return stored["weight"].shape


def _gptq(name: str, stored: Stored, read: Read) -> tuple[int, ...] | None:
    """Return (d_out, d_in): qweight is (d_in·bits/32, d_out), scales are (groups, d_out)."""
    rows, columns = _sides(name, stored["qweight"])
    if columns != _sides(name, stored["scales"])[1]:
        return None
    if "g_idx" in stored:
        return columns, stored["g_idx"].size
    if "qzeros" not in stored:
        raise _strange(name, "a qweight without g_idx or qzeros")
    return columns, rows * columns // max(_sides(name, stored["qzeros"])[1], 1)


def _awq(name: str, stored: Stored, read: Read) -> tuple[int, ...]:
    """Return (d_out, d_in); AWQ's GEMM packs along d_out, its GEMV along d_in, with 4 bits.

    GEMM: qweight (d_in, d_out·bits/32), scales (groups, d_out).
    GEMV: qweight (d_out, d_in·bits/32), scales (d_out, groups and padding).
    """
    rows, columns = _sides(name, stored["qweight"])
    first, second = _sides(name, stored["scales"])
    if columns and second % columns == 0:
        return second, rows
    if rows == first:
        return rows, columns * 8
    raise _strange(name, f"a qweight {[rows, columns]} with scales {[first, second]}")


def _sides(name: str, header: TensorHeader) -> tuple[int, int]:
    if len(header.shape) != 2:
        raise _strange(name, f"a part of shape {[*header.shape]} where a matrix was expected")
    return header.shape[0], header.shape[1]


def _compressed(name: str, stored: Stored, read: Read) -> tuple[int, ...]:
    """Return the shape that is stored beside packed integers, or that a float's scales tell.

    NVFP4 has a scale of 8-bit floating point for each 16 values, MXFP4 and MXFP6 one for each 32.
    """
    packed, scale = stored["_packed"], stored["_scale"]
    if "_shape" in stored:
        return _read_shape(name, stored["_shape"], read)
    if packed.dtype == "U8" and packed.shape and scale.shape:
        width = scale.shape[-1] * (16 if scale.dtype == "F8_E4M3" else 32)
        if packed.shape[-1] * 8 in (4 * width, 6 * width):
            return (*packed.shape[:-1], width)
    raise _strange(name, f"a packed weight {packed.dtype}{[*packed.shape]} without weight_shape")


def _hqq(name: str, stored: Stored, read: Read) -> tuple[int, ...]:
    return _read_shape(name, stored["shape"], read)


def _mxfp4(name: str, stored: Stored, read: Read) -> tuple[int, ...] | None:
    """Blocks (E, d_out, groups, 16) of 32 values each; the model holds (E, d_in, d_out)."""
    blocks = stored["_blocks"].shape
    if len(blocks) != 4 or blocks[:3] != stored["_scales"].shape:
        return None
    experts, d_out, groups, width = blocks
    return experts, groups * width * 2, d_out


def _scaled(name: str, stored: Stored, read: Read) -> tuple[int, ...] | None:
    """Return the shape of a weight in 8 bits, which has scales and is not packed."""
    return stored["weight"].shape if stored["weight"].dtype.startswith("F8_") else None


def _scaled_int8(name: str, stored: Stored, read: Read) -> tuple[int, ...] | None:
    return stored["weight"].shape if stored["weight"].dtype == "I8" else None


def _nvfp4(name: str, stored: Stored, read: Read) -> tuple[int, ...] | None:
    """NVFP4 as NVIDIA's Model Optimizer writes it: two values a byte, a scale for sixteen."""
    weight, scale = stored["weight"], stored["_scale"]
    if weight.dtype == "U8" and len(scale.shape) == len(weight.shape) == 2:
        return weight.shape[0], weight.shape[1] * 2
    return None


def _bitnet(name: str, stored: Stored, read: Read) -> tuple[int, ...] | None:
    """Four ternary values a byte, packed along d_out; one scale."""
    weight, scale = stored["weight"], stored["_scale"]
    if weight.dtype == "U8" and len(weight.shape) == 2 and scale.size == 1:
        return weight.shape[0] * 4, weight.shape[1]
    return None


# Each form: the tensors that tell it, the packed one first, and how its logical shape is found.
_FORMS: tuple[Form, ...] = (
    ("bitsandbytes-4bit", ("weight", "quant_state"), _bitsandbytes_4bit),
    ("bitsandbytes-8bit", ("weight", "SCB"), _unchanged),
    ("gptq", ("qweight", "scales"), _gptq),
    ("awq", ("qweight", "scales"), _awq),
    ("compressed-tensors", ("_packed", "_scale"), _compressed),
    ("hqq", ("W_q", "shape"), _hqq),
    ("mxfp4", ("_blocks", "_scales"), _mxfp4),
    ("fp8", ("weight", "_scale_inv"), _scaled),
    ("fp8", ("weight", "_scale"), _scaled),
    ("fp8", ("weight", "scale"), _scaled),
    ("fp8", ("weight", "qscale_weight"), _scaled),
    ("int8", ("weight", "_scale"), _scaled_int8),
    ("nvfp4", ("weight", "_scale"), _nvfp4),
    ("bitnet", ("weight", "_scale"), _bitnet),
)


def _read_shape(name: str, header: TensorHeader, read: Read) -> tuple[int, ...]:
    """Return the integers of a small tensor."""
    width = {"I64": 8, "I32": 4}.get(header.dtype)
    raw = read(header)
    if not width or not raw or len(raw) != header.nbytes:
        raise _strange(name, f"a shape stored as {header.dtype}{[*header.shape]}")
    numbers = [
        int.from_bytes(raw[at : at + width], "little", signed=True)
        for at in range(0, len(raw), width)
    ]
    if min(numbers) < 1:
        raise _strange(name, f"a stored shape of {numbers}")
    return tuple(numbers)


def _held(name: str, shape: tuple[int, ...], bits: int, packed: TensorHeader) -> tuple[int, ...]:
    """Hold a shape that the file claims against the bytes that are there."""
    needed = -(-math.prod(shape) * bits // 8)
    if not needed <= packed.nbytes < needed + 8:
        raise _strange(name, f"a shape of {[*shape]} for {packed.nbytes:,} bytes of {bits} bits")
    return shape


def _strange(name: str, what: str) -> ModelError:
    return ModelError(
        f"{name} is quantised and has {what}, which is not a form that is known; "
        "use the model's unquantised version"
    )


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
    return str(settings.get("quant_method", ""))
