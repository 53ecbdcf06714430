# mypy: disable-error-code="no-untyped-def"
"""LeanKV's two classification rules as Triton kernels, one launch each.

By mass no sort is needed: tokens order by their significance's bits and then their position, packed in 55 bits, and the
cut-off is the largest packed value up to which the mass stays within its share, found by bisection, a bit a pass.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
POSITION_BITS = tl.constexpr(24)
PACKED_BITS = tl.constexpr(55)


def by_threshold(
    significance: Tensor, positions: Tensor, length: Tensor, prune_below: Tensor, low_below: Tensor, window: int
) -> Tensor:
    """See `classify.by_threshold`; the last three tensors are float32 or int32 [heads, 1] or [heads, T]."""
    heads, tokens = significance.shape
    tiers = torch.empty(heads, tokens, dtype=torch.int8, device=significance.device)
    prune_below, low_below = (each.float().expand(heads, tokens) for each in (prune_below, low_below))
    threshold_kernel[(heads, triton.cdiv(tokens, BLOCK))](
        significance.contiguous(), positions.contiguous(), _by_head(length, heads), prune_below, low_below, tiers,
        tokens, *prune_below.stride(), *low_below.stride(), WINDOW=window, BLOCK=BLOCK,
    )  # fmt: skip
    return tiers


def by_mass(
    significance: Tensor, positions: Tensor, length: Tensor, prune_share: float, low_share: float, window: int
) -> Tensor:
    """See `classify.by_mass`; positions below 2^24."""
    heads, tokens = significance.shape
    tiers = torch.empty(heads, tokens, dtype=torch.int8, device=significance.device)
    given = significance.contiguous(), positions.contiguous(), _by_head(length, heads)
    mass_kernel[(heads,)](
        *given, tiers, tiers, tokens, PRUNE=prune_share, LOW_SHARE=low_share, WINDOW=window, RAGGED=False, BLOCK=BLOCK
    )
    return tiers


def _by_head(length: Tensor, heads: int) -> Tensor:
    return length.to(torch.int32).reshape(-1).expand(heads).contiguous()


@triton.jit
def threshold_kernel(
    significance, positions, length, prune_below, low_below, tiers, tokens,
    prune_stride_h, prune_stride_t, low_stride_h, low_stride_t, WINDOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = token < tokens
    value = tl.load(significance + head * tokens + token, mask=there, other=0.0)
    position = tl.load(positions + head * tokens + token, mask=there, other=-1)
    prune = tl.load(prune_below + head * prune_stride_h + token * prune_stride_t, mask=there, other=0.0)
    low = tl.load(low_below + head * low_stride_h + token * low_stride_t, mask=there, other=0.0)
    tier = tl.where(value < prune, 2, tl.where(value < low, 1, 0))
    tier = tl.where(position >= tl.load(length + head) - WINDOW, 0, tier)
    tier = tl.where(position < 0, 2, tier)
    tl.store(tiers + head * tokens + token, tier.to(tl.int8), mask=there)


@triton.jit
def _load(significance, positions, first, tokens, newest, BLOCK: tl.constexpr):
    """Significance as float64 (0 where no token is), packed order (largest where exempt or empty), and position."""
    token = first + tl.arange(0, BLOCK)
    there = token < tokens
    position = tl.load(positions + token, mask=there, other=-1)
    value = tl.load(significance + token, mask=there & (position >= 0), other=0.0)
    packed = (value.to(tl.int32, bitcast=True).to(tl.int64) << POSITION_BITS) | position.to(tl.int64)
    packed = tl.where((position >= 0) & (position < newest), packed, 0x7FFFFFFFFFFFFFFF)
    return value.to(tl.float64), packed, position


@triton.jit
def mass_kernel(
    significance, positions, length, tiers, held, width,
    PRUNE: tl.constexpr, LOW_SHARE: tl.constexpr, WINDOW: tl.constexpr, RAGGED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (heads): rows of `width` tokens; RAGGED: of which the first `held` int32 [heads] count."""
    head = tl.program_id(0).to(tl.int64)
    tokens = tl.load(held + head) if RAGGED else width
    significance += head * width
    positions += head * width
    newest = tl.load(length + head) - WINDOW
    total = tl.zeros([], tl.float64)
    for first in range(0, tokens, BLOCK):
        value, packed, position = _load(significance, positions, first, tokens, newest, BLOCK)
        total += tl.sum(value, 0)
    # The largest packed values within the shares, one bit a pass from the top; -1 where not even the least token fits.
    prune_cut = tl.full([], -1, tl.int64)
    low_cut = tl.full([], -1, tl.int64)
    for bit in range(PACKED_BITS):
        step = tl.full([], 1, tl.int64) << (PACKED_BITS - 1 - bit)
        prune_try = prune_cut + step
        low_try = low_cut + step
        pruned = tl.zeros([], tl.float64)
        lowered = tl.zeros([], tl.float64)
        for first in range(0, tokens, BLOCK):
            value, packed, position = _load(significance, positions, first, tokens, newest, BLOCK)
            pruned += tl.sum(tl.where(packed <= prune_try, value, 0.0), 0)
            lowered += tl.sum(tl.where(packed <= low_try, value, 0.0), 0)
        prune_cut = tl.where(pruned <= PRUNE * total, prune_try, prune_cut)
        low_cut = tl.where(lowered <= LOW_SHARE * total, low_try, low_cut)
    for first in range(0, tokens, BLOCK):
        value, packed, position = _load(significance, positions, first, tokens, newest, BLOCK)
        tier = tl.where(packed <= prune_cut, 2, tl.where(packed <= low_cut, 1, 0))
        tier = tl.where(position < 0, 2, tier)
        token = first + tl.arange(0, BLOCK)
        tl.store(tiers + head * width + token, tier.to(tl.int8), mask=token < tokens)
