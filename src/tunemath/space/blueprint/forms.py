"""How each quantised format packs a weight: the shape that the stored tensors stand for.

A format is told by the tensors that lie together, the packed one first. Sources of the layouts:
bitsandbytes/functional.py (QuantState.as_dict), AutoGPTQ's qlinear_exllama.py, AutoAWQ's gemm.py
and gemv.py, hqq/core/{quantize,bitpack,utils}.py, compressed-tensors' compressors pack_quantized,
nvfp4_quantized, mxfp6 and sparse_24_bitmask, TensorRT Model Optimizer's NVFP4 and Quark's MXFP4
as vllm reads them, transformers' integrations/{mxfp4,finegrained_fp8,bitnet}.py. A layout that is
not among these is refused, never guessed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import cache

from tunemath.errors import ModelError
from tunemath.space.checkpoint import TensorHeader

__all__ = ["Form", "Read", "Stored", "forms_of", "strange"]

Read = Callable[[TensorHeader], bytes]
Stored = Mapping[str, TensorHeader]
Form = tuple[str, tuple[str, ...], Callable[[str, Stored, Read], tuple[int, ...] | None]]


@cache
def forms_of(parts: frozenset[str]) -> tuple[Form, ...]:
    """Return the forms that a group of tensors may have, by what it holds."""
    return tuple(form for form in _FORMS if parts.issuperset(form[1]))


def _bitsandbytes_4bit(name: str, stored: Stored, read: Read) -> tuple[int, ...]:
    """Two values a byte in one column; the shape is in a short JSON stored as bytes."""
    state = read(stored["quant_state"])
    try:
        shape = json.loads(state)["shape"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise strange(name, "a quant_state without a shape") from None
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        raise strange(name, f"a quant_state of shape {shape!r}")
    return _held(name, tuple(shape), 4, stored["weight"])


def _unchanged(name: str, stored: Stored, read: Read) -> tuple[int, ...]:
    return stored["weight"].shape


def _gptq(name: str, stored: Stored, read: Read) -> tuple[int, ...] | None:
    """Return (d_out, d_in): qweight is (d_in·bits/32, d_out) of I32, scales are (groups, d_out)."""
    packed = stored["qweight"]
    if packed.dtype != "I32":
        return None
    rows, columns = _sides(name, packed)
    if columns != _sides(name, stored["scales"])[1]:
        return None
    if "g_idx" in stored:
        d_in = stored["g_idx"].size
    elif "qzeros" in stored:
        d_in = rows * columns // max(_sides(name, stored["qzeros"])[1], 1)
    else:
        raise strange(name, "a qweight without g_idx or qzeros")
    if not any(rows * 32 == d_in * bits for bits in (2, 3, 4, 8)):
        raise strange(name, f"a qweight {[rows, columns]} for {d_in:,} inputs")
    return columns, d_in


def _awq(name: str, stored: Stored, read: Read) -> tuple[int, ...] | None:
    """Return (d_out, d_in); AWQ packs eight values of 4 bits: its GEMM along d_out, its GEMV d_in.

    GEMM: qweight (d_in, d_out/8) of I32, scales (groups, d_out).
    GEMV: qweight (d_out, d_in/8) of I32, scales (d_out, groups and padding).
    """
    if stored["qweight"].dtype != "I32":
        return None
    rows, columns = _sides(name, stored["qweight"])
    first, second = _sides(name, stored["scales"])
    if second == columns * 8:
        return second, rows
    if rows == first:
        return rows, columns * 8
    raise strange(name, f"a qweight {[rows, columns]} with scales {[first, second]}")


def _sides(name: str, header: TensorHeader) -> tuple[int, int]:
    if len(header.shape) != 2:
        raise strange(name, f"a part of shape {[*header.shape]} where a matrix was expected")
    return header.shape[0], header.shape[1]


def _compressed(name: str, stored: Stored, read: Read) -> tuple[int, ...]:
    """Return the shape that is stored beside packed integers, or that a float's scales tell.

    pack-quantized lays 32/bits values of a row into an I32. NVFP4, MXFP4 and MXFP6 are bytes.
    """
    packed, scale = stored["_packed"], stored["_scale"]
    if "_shape" in stored:
        shape = _read_integers(name, stored["_shape"], read)
        *rows, columns = packed.shape or (0,)
        whole = any(columns == -(-shape[-1] // (32 // bits)) for bits in range(1, 9))
        if packed.dtype != "I32" or [*shape[:-1]] != rows or not whole:
            raise _unlike(name, shape, packed)
        return shape
    width = _width_of_scales(scale)
    if packed.dtype == "U8" and width and packed.shape and packed.shape[:-1] == scale.shape[:-1]:
        bits, rest = divmod(packed.shape[-1] * 8, width)
        if bits in (4, 6) and not rest:
            return (*packed.shape[:-1], width)
    raise strange(name, f"a packed weight {packed.dtype}{[*packed.shape]} without weight_shape")


def _width_of_scales(scale: TensorHeader) -> int:
    """Return how many values of a row its scales are for; 0 where they are of no such format.

    NVFP4 has a scale of 8-bit floating point for each 16 values; MXFP4 and MXFP6 have an exponent,
    stored as a byte, for each 32.
    """
    values = {"F8_E4M3": 16, "U8": 32, "F8_E8M0": 32}.get(scale.dtype, 0)
    return scale.shape[-1] * values if scale.shape else 0


def _sparse(name: str, stored: Stored, read: Read) -> tuple[int, ...]:
    """Return the shape that lies beside the values that are not zero and the mask of all."""
    shape = _read_integers(name, stored["shape"], read)
    if stored["compressed"].size > math.prod(shape):
        raise _unlike(name, shape, stored["compressed"])
    return shape


def _hqq(name: str, stored: Stored, read: Read) -> tuple[int, ...]:
    """Return the shape that is stored beside W_q, whose values have nbits: whole bytes of them.

    Those of 3 bits lie ten in an I32, in rows that are filled up to a multiple of ten.
    """
    if "shape" not in stored or "nbits" not in stored:
        raise strange(name, "a W_q without shape or nbits")
    shape, packed = _read_integers(name, stored["shape"], read), stored["W_q"]
    bits, count = _read_integers(name, stored["nbits"], read)[0], math.prod(shape)
    filled = packed.nbytes // 4 * 10 - count
    columns = packed.shape[-1] if packed.shape else 0
    if not (0 <= filled < 10 * columns if bits == 3 else packed.nbytes * 8 == count * bits):
        raise _unlike(name, shape, packed)
    return shape


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


def _two_a_byte(name: str, stored: Stored, read: Read) -> tuple[int, ...] | None:
    """NVFP4 of Model Optimizer and MXFP4 of Quark: two values a byte, told by their scales."""
    weight, scale = stored["weight"], stored["_scale"]
    if weight.dtype != "U8" or not weight.shape or weight.shape[:-1] != scale.shape[:-1]:
        return None
    width = _width_of_scales(scale)
    return (*weight.shape[:-1], width) if width == 2 * weight.shape[-1] else None


def _nvfp4(name: str, stored: Stored, read: Read) -> tuple[int, ...] | None:
    return _two_a_byte(name, stored, read) if stored["_scale"].dtype == "F8_E4M3" else None


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
    ("compressed-tensors", ("compressed", "bitmask", "shape"), _sparse),
    ("hqq", ("W_q",), _hqq),
    ("mxfp4", ("_blocks", "_scales"), _mxfp4),
    ("fp8", ("weight", "_scale_inv"), _scaled),
    ("fp8", ("weight", "_scale"), _scaled),
    ("fp8", ("weight", "scale"), _scaled),
    ("fp8", ("weight", "qscale_weight"), _scaled),
    ("int8", ("weight", "_scale"), _scaled_int8),
    ("nvfp4", ("weight", "_scale"), _nvfp4),
    ("mxfp4", ("weight", "_scale"), _two_a_byte),
    ("bitnet", ("weight", "_scale"), _bitnet),
)


def _read_integers(name: str, header: TensorHeader, read: Read) -> tuple[int, ...]:
    """Return the integers of a small tensor: a shape, or a number of bits."""
    width = {"I64": 8, "I32": 4, "U8": 1}.get(header.dtype)
    raw = read(header)
    if not width or not raw or len(raw) != header.nbytes:
        raise strange(name, f"a shape stored as {header.dtype}{[*header.shape]}")
    numbers = [
        int.from_bytes(raw[at : at + width], "little", signed=True)
        for at in range(0, len(raw), width)
    ]
    if min(numbers) < 1:
        raise strange(name, f"a stored shape of {numbers}")
    return tuple(numbers)


def _held(name: str, shape: tuple[int, ...], bits: int, packed: TensorHeader) -> tuple[int, ...]:
    """Hold a shape that the file claims against the bytes that are there."""
    needed = -(-math.prod(shape) * bits // 8)
    if not needed <= packed.nbytes < needed + 8:
        raise strange(name, f"a shape of {[*shape]} for {packed.nbytes:,} bytes of {bits} bits")
    return shape


def _unlike(name: str, shape: tuple[int, ...], packed: TensorHeader) -> ModelError:
    return strange(name, f"a stored shape of {[*shape]} beside {packed.dtype}{[*packed.shape]}")


def strange(name: str, what: str) -> ModelError:
    """Return the error of a packed weight whose layout is not known."""
    return ModelError(
        f"{name} is quantised and has {what}, which is no layout that is known; known are those "
        f"of {', '.join(dict.fromkeys(form for form, _, _ in _FORMS))}. Use the model's "
        "unquantised version"
    )
