"""Quantization as one would explain it: one group, one byte, one candidate at a time. The oracle of the other forms."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

HALF_MAX = 65504.0


def quantize(x: Tensor, bits: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zeros of x float32 [..., channels]; see `kernels/quantization.py`."""
    *leading, channels = x.shape
    rows = x.reshape(-1, channels // groups)
    quantized = [_quantize_group(row.numpy(), bits) for row in rows]
    codes, scales, zeros = (np.array(column) for column in zip(*quantized, strict=True))
    return (
        torch.from_numpy(codes).view(*leading, channels),
        torch.from_numpy(scales).view(*leading, groups),
        torch.from_numpy(zeros).view(*leading, groups),
    )


def _quantize_group(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.float16, np.float16]:
    levels = 2**bits - 1
    zero = _half_at_most(float(np.clip(x.min(), -HALF_MAX, HALF_MAX)))
    top = float(np.clip(x.max(), -HALF_MAX, HALF_MAX))
    scale = _half_at_least(min((top - float(zero)) / levels, HALF_MAX))
    while float(zero) + levels * float(scale) < top and float(scale) < HALF_MAX:
        scale = np.nextafter(scale, np.float16(np.inf))
    if scale == 0:
        return np.zeros(len(x), np.uint8), scale, zero
    steps = (x - np.float32(zero)) / np.float32(scale)
    return np.clip(np.floor(steps + np.float32(0.5)), 0, levels).astype(np.uint8), scale, zero


def _half_at_most(value: float) -> np.float16:
    half = np.float16(value)
    return half if float(half) <= value else np.nextafter(half, np.float16(-np.inf))


def _half_at_least(value: float) -> np.float16:
    half = np.float16(value)
    return half if float(half) >= value else np.nextafter(half, np.float16(np.inf))


def pack(codes: Tensor, bits: int) -> Tensor:
    """Byte j holds channels j, j + D/n, j + 2D/n, ... of the n = 8/bits codes of a byte."""
    if bits == 3:
        return torch.cat((pack(codes & 3, 2), pack(codes >> 2, 1)), -1)
    per_byte = 8 // bits
    width = codes.shape[-1] // per_byte
    packed = torch.zeros(*codes.shape[:-1], width, dtype=torch.uint8)
    for byte in range(width):
        for place in range(per_byte):
            packed[..., byte] |= codes[..., byte + place * width] << (bits * place)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Inverse of `pack`."""
    if bits == 3:
        channels = packed.shape[-1] * 8 // 3
        low, third = packed[..., : channels // 4], packed[..., channels // 4 :]
        return unpack(low, 2) + 4 * unpack(third, 1)
    width, per_byte = packed.shape[-1], 8 // bits
    codes = torch.zeros(*packed.shape[:-1], width * per_byte, dtype=torch.uint8)
    for byte in range(width):
        for place in range(per_byte):
            codes[..., byte + place * width] = (packed[..., byte] >> (bits * place)) & (2**bits - 1)
    return codes


def decode_e4m3(codes: Tensor) -> Tensor:
    """Sign, four exponent bits with bias 7, three fraction bits; 0x7f and 0xff are NaN."""
    return torch.tensor([_e4m3_value(int(code)) for code in codes.flatten()], dtype=torch.float32).view(codes.shape)


def encode_e4m3(x: Tensor) -> Tensor:
    """The nearest of the finite e4m3 values, the even code on a tie."""
    magnitudes = [_e4m3_value(code) for code in range(0x7F)]
    return torch.tensor([_nearest(float(v), magnitudes) for v in x.flatten()], dtype=torch.uint8).view(x.shape)


def _nearest(value: float, magnitudes: list[float]) -> int:
    code = min(range(len(magnitudes)), key=lambda c: (abs(magnitudes[c] - abs(value)), c % 2))
    return code | (0x80 if math.copysign(1, value) < 0 else 0)


def _e4m3_value(code: int) -> float:
    sign = -1.0 if code & 0x80 else 1.0
    exponent, fraction = (code >> 3) & 15, code & 7
    if exponent == 15 and fraction == 7:
        return math.nan
    if exponent == 0:
        return sign * fraction / 8 * 2.0**-6
    return sign * (1 + fraction / 8) * 2.0 ** (exponent - 7)
