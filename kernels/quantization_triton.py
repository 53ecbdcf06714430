# mypy: disable-error-code="no-untyped-def"
"""The quantization rule of `kernels/quantization.py` as Triton device functions, bit for bit."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def half_at_most(x):
    """float16 bits (int16) of the largest float16 that is at most x float32 within +-65504."""
    half = x.to(tl.float16)
    bits = half.to(tl.int16, bitcast=True)
    below = tl.where(half > 0, bits - 1, tl.where(half == 0, -32767, bits + 1)).to(tl.int16)
    return tl.where(half.to(tl.float32) > x, below, bits)


@triton.jit
def half_at_least(x):
    """float16 bits (int16) of the smallest float16 that is at least x float32 in [0, 65504]."""
    half = x.to(tl.float16)
    bits = half.to(tl.int16, bitcast=True)
    return tl.where(half.to(tl.float32) < x, bits + 1, bits).to(tl.int16)


@triton.jit
def half_value(bits):
    """float32 of float16 bits (int16)."""
    return bits.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def scale_and_zero(low, high, BITS: tl.constexpr):
    """float16 bits of scale and zero for groups that range from `low` to `high` (float32)."""
    levels = (1 << BITS) - 1.0
    low = tl.minimum(tl.maximum(low, -65504.0), 65504.0)
    high = tl.minimum(tl.maximum(high, -65504.0), 65504.0)
    zero = half_at_most(low)
    base = half_value(zero)
    scale = half_at_least(tl.minimum(tl.div_rn(high - base, levels + tl.zeros_like(high)), 65504.0))
    short = (base + levels * half_value(scale) < high) & (half_value(scale) < 65504.0)
    return tl.where(short, scale + 1, scale).to(tl.int16), zero


@triton.jit
def code_of(x, scale, zero, BITS: tl.constexpr):
    """int32 codes of x under a float32 scale and zero that broadcast against it."""
    divisor = tl.where(scale == 0, 1.0, scale) + tl.zeros_like(x)
    steps = tl.div_rn(x - zero, divisor) + 0.5
    return tl.minimum(tl.maximum(tl.floor(steps), 0.0), (1 << BITS) - 1.0).to(tl.int32)


@triton.jit
def pair_of(scale, zero):
    """The (scale, zero) word out of float16 bits."""
    return (scale.to(tl.int32) & 0xFFFF) | (zero.to(tl.int32) << 16)


@triton.jit
def e4m3_of(x):
    """int32 e4m3 byte of x float32: nearest even, saturating; there is no such type before sm_89."""
    magnitude = tl.minimum(tl.abs(x), 448.0)
    bits = magnitude.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # Adding 2^14 leaves multiples of 2^-9, e4m3's smallest, in the low bits.
    small = (magnitude + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    sign = (x.to(tl.int32, bitcast=True) >> 24) & 0x80
    return tl.where(magnitude < 0.015625, small, normal) | sign


@triton.jit
def e4m3_value(code):
    """float32 of e4m3 bytes (int32): through float16, whose exponent is 256 times wider apart; NaN included."""
    bits = ((code & 0x80) << 8) | ((code & 0x7F) << 7)
    value = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return tl.where((code & 0x7F) == 0x7F, float("nan"), value)
