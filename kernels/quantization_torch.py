"""Quantization in vectorised torch: whole tensors at once, float16 neighbours by their bits."""

from __future__ import annotations

import torch
from torch import Tensor

HALF_MAX = 65504.0
E4M3_MAX = 448.0


def quantize(x: Tensor, bits: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and zeros of x float32 [..., channels]; see `kernels/quantization.py`."""
    *leading, channels = x.shape
    levels = 2**bits - 1
    grouped = x.reshape(*leading, groups, channels // groups)
    low, high = grouped.clamp(-HALF_MAX, HALF_MAX).aminmax(dim=-1)
    zero = _half_at_most(low)
    base = zero.float()
    scale = _half_at_least(((high - base) / levels).clamp(max=HALF_MAX))
    too_small = (base + levels * scale.float() < high) & (scale < HALF_MAX)
    scale = torch.where(too_small, _next_above(scale), scale)
    step = scale.float()
    divisor = torch.where(step == 0, 1.0, step)
    codes = (grouped - base[..., None]).div_(divisor[..., None]).add_(0.5).floor_().clamp_(0, levels)
    return codes.to(torch.uint8).view(*leading, channels), scale, zero


def _half_at_most(value: Tensor) -> Tensor:
    half = value.half()
    bits = half.view(torch.int16)
    below = torch.where(half > 0, bits - 1, torch.where(half == 0, torch.full_like(bits, -32767), bits + 1))
    return torch.where(half.float() > value, below, bits).view(torch.float16)


def _half_at_least(value: Tensor) -> Tensor:
    """For values of at least zero."""
    half = value.half()
    return torch.where(half.float() < value, _next_above(half), half)


def _next_above(half: Tensor) -> Tensor:
    return (half.view(torch.int16) + 1).view(torch.float16)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Runs of channels shifted into place and or-ed."""
    if bits == 8:
        return codes
    if bits == 3:
        return torch.cat((pack(codes & 3, 2), pack(codes >> 2, 1)), -1)
    first, *others = codes.chunk(8 // bits, dim=-1)
    packed = first.clone()
    for place, run in enumerate(others, 1):
        packed |= run << (bits * place)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Inverse of `pack`."""
    if bits == 8:
        return packed
    if bits == 3:
        low, third = packed.split((packed.shape[-1] * 2 // 3, packed.shape[-1] // 3), dim=-1)
        return unpack(low, 2) | (unpack(third, 1) << 2)
    *places, last = range(8 // bits)
    runs = [(packed >> (bits * place)) & (2**bits - 1) for place in places]
    return torch.cat((*runs, packed >> (bits * last)), -1)


def encode_e4m3(x: Tensor) -> Tensor:
    """Torch's own rounding, saturated first because torch turns an overflow into NaN."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)


def decode_floats(packed: Tensor, bits: int) -> Tensor:
    """float32 [..., n] from the bytes of n elements of `bits` 8 (e4m3), 16 or 32: uint8 [..., n * bits / 8]."""
    if bits == 8:
        return decode_e4m3(packed)
    return packed.view(torch.float32 if bits == 32 else torch.float16).float()


def decode_e4m3(codes: Tensor) -> Tensor:
    """Torch's own conversion."""
    return codes.view(torch.float8_e4m3fn).float()
