"""Quantization of keys and values to integers and to e4m3, and the packing of integer codes into bytes.

The rule (LeanKV, arXiv 2412.03131, section 4, tightened): a group of channels x is stored as codes
q = floor((x - z)/s + 1/2) in [0, 2^bits - 1] and float16 s and z, read back as q * s + z. Both are rounded before
quantizing, z down from min(x), s up until z + (2^bits - 1) * s >= max(x), so the error is at most s/2 with the s
that is stored, and a constant float16 group is exact (s = 0). A step below float16's smallest becomes that smallest.
Inputs beyond +-65504, and steps beyond 65504, saturate here; `kernels/store.py` refuses such keys and values before
they come so far. A non-finite input is an error.

Forms: `reference` is written to be read, `torch` is vectorised; on CUDA both happen inside the store kernel
(`kernels/store.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leankv.kernels import quantization_reference, quantization_torch
from leankv.kernels.paths import Path

HALF_MAX = 65504.0
E4M3_MAX = 448.0


@dataclass(frozen=True, eq=False)
class Quantized:
    """codes uint8 [..., channels]; scale and zero float16 [..., groups], group g being channels/groups neighbours."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int


def quantize(x: Tensor, bits: int, groups: int = 1, path: Path = "torch") -> Quantized:
    """Quantize the last axis of x [..., channels] in `groups` groups; computed in float32.

    Raises ValueError if x is not finite.
    """
    require_finite(x)
    form = quantization_reference if path == "reference" else quantization_torch
    codes, scale, zero = form.quantize(x.float(), bits, groups)
    return Quantized(codes, scale, zero, bits)


def dequantize(quantized: Quantized) -> Tensor:
    """float32 [..., channels]: codes * scale + zero, group by group."""
    *leading, channels = quantized.codes.shape
    groups = quantized.scale.shape[-1]
    codes = quantized.codes.view(*leading, groups, channels // groups).float()
    values = codes * quantized.scale.float()[..., None] + quantized.zero.float()[..., None]
    return values.view(*leading, channels)


def pack(codes: Tensor, bits: int, path: Path = "torch") -> Tensor:
    """uint8 [..., channels * bits / 8] from codes uint8 [..., channels], as `kernels/layout.py` lays them out.

    Three-bit codes give the plane of the low two bits followed by the plane of the third bits.
    """
    form = quantization_reference if path == "reference" else quantization_torch
    return form.pack(codes, bits)


def unpack(packed: Tensor, bits: int, path: Path = "torch") -> Tensor:
    """The inverse of `pack`: uint8 [..., channels]."""
    form = quantization_reference if path == "reference" else quantization_torch
    return form.unpack(packed, bits)


def encode_e4m3(x: Tensor, path: Path = "torch") -> Tensor:
    """uint8 bytes of x in float8 e4m3 (1-4-3, no infinities), rounded to nearest even, saturating at +-448.

    Raises ValueError if x is not finite.
    """
    require_finite(x)
    form = quantization_reference if path == "reference" else quantization_torch
    return form.encode_e4m3(x.float())


def decode_e4m3(codes: Tensor, path: Path = "torch") -> Tensor:
    """float32 values of e4m3 bytes; 0x7f and 0xff are NaN."""
    form = quantization_reference if path == "reference" else quantization_torch
    return form.decode_e4m3(codes)


def require_finite(x: Tensor) -> None:
    """Raises ValueError if any element is infinite or NaN."""
    if not bool(torch.isfinite(x).all()):
        raise ValueError("keys and values must be finite to be stored")


def require_storable(x: Tensor) -> None:
    """Raises ValueError if any element is NaN or beyond float16's range."""
    # NaN compares as false.
    if x.numel() and not bool(x.abs().amax() <= HALF_MAX):
        raise ValueError(f"keys, transformed or not, and values must be finite and within +-{HALF_MAX:g} to be stored")
