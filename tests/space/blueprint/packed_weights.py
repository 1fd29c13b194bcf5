"""Linear layers as quantised checkpoints hold them, by their formats' own descriptions."""

from __future__ import annotations

import json
import struct


def bitsandbytes_4bit(name, d_out, d_in):
    """bitsandbytes/functional.py, QuantState.as_dict(packed=True); double quantisation."""
    blocks = -(-d_out * d_in // 64)
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "shape": [d_out, d_in]}).encode()
    return {
        f"{name}.weight": ("U8", ((d_out * d_in + 1) // 2, 1)),
        f"{name}.weight.absmax": ("U8", (blocks,)),
        f"{name}.weight.quant_map": ("F32", (16,)),
        f"{name}.weight.nested_absmax": ("F32", (1,)),
        f"{name}.weight.nested_quant_map": ("F32", (256,)),
        f"{name}.weight.quant_state.bitsandbytes__nf4": state,
    }


def bitsandbytes_8bit(name, d_out, d_in):
    """bitsandbytes/nn/modules.py, Linear8bitLt._save_to_state_dict."""
    return {
        f"{name}.weight": ("I8", (d_out, d_in)),
        f"{name}.SCB": ("F32", (d_out,)),
        f"{name}.weight_format": ("U8", ()),
    }


def gptq(name, d_out, d_in, bits=4, group=16):
    """AutoGPTQ, auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py."""
    groups = -(-d_in // group)
    return {
        f"{name}.qweight": ("I32", (d_in * bits // 32, d_out)),
        f"{name}.qzeros": ("I32", (groups, d_out * bits // 32)),
        f"{name}.scales": ("F16", (groups, d_out)),
        f"{name}.g_idx": ("I32", (d_in,)),
    }


def gptq_8bit_without_g_idx(name, d_out, d_in):
    tensors = gptq(name, d_out, d_in, bits=8)
    del tensors[f"{name}.g_idx"]
    return tensors


def awq(name, d_out, d_in, group=16):
    """AutoAWQ, awq/modules/linear/gemm.py: eight values of 4 bits along d_out."""
    groups = -(-d_in // group)
    return {
        f"{name}.qweight": ("I32", (d_in, d_out // 8)),
        f"{name}.qzeros": ("I32", (groups, d_out // 8)),
        f"{name}.scales": ("F16", (groups, d_out)),
    }


def awq_gemv(name, d_out, d_in):
    """AutoAWQ, awq/modules/linear/gemv.py: along d_in, scales padded to eight groups."""
    return {
        f"{name}.qweight": ("I32", (d_out, d_in // 8)),
        f"{name}.qzeros": ("I32", (d_out, 1)),
        f"{name}.scales": ("F16", (d_out, 2)),
    }


def pack_quantized(name, d_out, d_in):
    """compressed-tensors, compressors/pack_quantized.py: 4 bits, padded to whole integers."""
    return {
        f"{name}.weight_packed": ("I32", (d_out, -(-d_in // 8))),
        f"{name}.weight_scale": ("BF16", (d_out, -(-d_in // 16))),
        f"{name}.weight_zero_point": ("I32", (-(-d_out // 8), -(-d_in // 16))),
        f"{name}.weight_shape": ("I64", struct.pack("<2q", d_out, d_in)),
    }


def nvfp4_packed(name, d_out, d_in):
    """compressed-tensors, compressors/quantized_compressors/nvfp4_quantized.py."""
    return {
        f"{name}.weight_packed": ("U8", (d_out, d_in // 2)),
        f"{name}.weight_scale": ("F8_E4M3", (d_out, d_in // 16)),
        f"{name}.weight_global_scale": ("F32", (1,)),
        f"{name}.input_global_scale": ("F32", (1,)),
    }


def mxfp4_packed(name, d_out, d_in):
    """compressed-tensors, compressors/mxfp4: two values a byte, an exponent for 32."""
    return {
        f"{name}.weight_packed": ("U8", (d_out, d_in // 2)),
        f"{name}.weight_scale": ("U8", (d_out, d_in // 32)),
    }


def mxfp6_packed(name, d_out, d_in):
    """compressed-tensors, compressors/mxfp6/base.py: four values in three bytes."""
    return {
        f"{name}.weight_packed": ("U8", (d_out, d_in * 3 // 4)),
        f"{name}.weight_scale": ("U8", (d_out, d_in // 32)),
    }


def nvfp4(name, d_out, d_in):
    """TensorRT Model Optimizer, as vllm's quantization/modelopt.py reads it."""
    return {
        f"{name}.weight": ("U8", (d_out, d_in // 2)),
        f"{name}.weight_scale": ("F8_E4M3", (d_out, d_in // 16)),
        f"{name}.weight_scale_2": ("F32", ()),
        f"{name}.input_scale": ("F32", ()),
    }


def mxfp4_quark(name, d_out, d_in):
    """AMD Quark, as vllm's quantization/quark/schemes/quark_ocp_mx.py reads it."""
    return {
        f"{name}.weight": ("U8", (d_out, d_in // 2)),
        f"{name}.weight_scale": ("U8", (d_out, d_in // 32)),
    }


def sparse_24(name, d_out, d_in):
    """compressed-tensors, sparse_compressors/sparse_24_bitmask.py: half the values, all bits."""
    return {
        f"{name}.shape": ("I64", struct.pack("<2q", d_out, d_in)),
        f"{name}.compressed": ("F16", (d_out, d_in // 2)),
        f"{name}.bitmask": ("U8", (d_out, -(-d_in // 8))),
    }


def fp8_blocks(name, d_out, d_in):
    """DeepSeek-V3: a scale for each block of 128 × 128."""
    return {
        f"{name}.weight": ("F8_E4M3", (d_out, d_in)),
        f"{name}.weight_scale_inv": ("F32", (-(-d_out // 128), -(-d_in // 128))),
    }


def fp8_tensor(name, d_out, d_in):
    """compressed-tensors, float-quantized: a scale for each tensor."""
    return {
        f"{name}.weight": ("F8_E4M3", (d_out, d_in)),
        f"{name}.weight_scale": ("F32", (1,)),
        f"{name}.input_scale": ("F32", (1,)),
    }


def int8(name, d_out, d_in):
    """compressed-tensors, int-quantized: a scale for each row."""
    return {
        f"{name}.weight": ("I8", (d_out, d_in)),
        f"{name}.weight_scale": ("F32", (d_out, 1)),
    }


def hqq(name, d_out, d_in):
    """hqq/core/quantize.py, HQQLinear.state_dict and utils.encode_safetensor_type."""
    return {
        f"{name}.W_q": ("U8", (32, d_out * d_in // 64)),
        f"{name}.scale": ("F16", (1, d_out * d_in // 64)),
        f"{name}.zero": ("F16", (1, d_out * d_in // 64)),
        f"{name}.shape": ("I64", struct.pack("<2q", d_out, d_in)),
        f"{name}.nbits": ("I32", struct.pack("<i", 4)),
        f"{name}.group_size": ("I32", (1,)),
        f"{name}.packing": b"4bit_u8",
        f"{name}.view_as_float": ("U8", ()),
    }


def hqq_3bit(name, d_out, d_in):
    """hqq/core/bitpack.py, pack_3bit_32: 16 rows are filled up to 20, ten of them in one I32."""
    return hqq(name, d_out, d_in) | {
        f"{name}.W_q": ("I32", (2, d_out * d_in // 16)),
        f"{name}.nbits": b"\x03",  # a byte before hqq 0.2
    }


def hqq_2bit_as_float(name, d_out, d_in):
    """hqq/core/quantize.py, view_as_float: the same bytes under another dtype."""
    return hqq(name, d_out, d_in) | {
        f"{name}.W_q": ("F16", (16, d_out * d_in // 128)),
        f"{name}.nbits": ("I32", struct.pack("<i", 2)),
    }


def bitnet(name, d_out, d_in):
    """transformers, integrations/bitnet.py: four ternary values a byte along d_out."""
    return {
        f"{name}.weight": ("U8", (d_out // 4, d_in)),
        f"{name}.weight_scale": ("BF16", (1,)),
    }


FORMS = {
    "bitsandbytes-4bit": (bitsandbytes_4bit, "bitsandbytes-4bit"),
    "bitsandbytes-8bit": (bitsandbytes_8bit, "bitsandbytes-8bit"),
    "gptq": (gptq, "gptq"),
    "gptq-8bit": (gptq_8bit_without_g_idx, "gptq"),
    "awq": (awq, "awq"),
    "awq-gemv": (awq_gemv, "awq"),
    "pack-quantized": (pack_quantized, "compressed-tensors"),
    "nvfp4-pack": (nvfp4_packed, "compressed-tensors"),
    "nvfp4": (nvfp4, "nvfp4"),
    "fp8-blocks": (fp8_blocks, "fp8"),
    "fp8-tensor": (fp8_tensor, "fp8"),
    "int8": (int8, "int8"),
    "sparse-24": (sparse_24, "compressed-tensors"),
    "hqq": (hqq, "hqq"),
    "hqq-3bit": (hqq_3bit, "hqq"),
    "hqq-2bit": (hqq_2bit_as_float, "hqq"),
    "bitnet": (bitnet, "bitnet"),
}
