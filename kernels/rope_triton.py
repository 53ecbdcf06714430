# mypy: disable-error-code="no-untyped-def"
"""Queries against a mean key at every position on CUDA, before decode attention adds them to its logits.

A request's row is as long as its context, and positions beyond it cost nothing. The products run in three parts of
TensorFloat-32: a bias of 300 met by a query of as much must not lose what decides between two keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from leankv.kernels.attention import TurnedCentres

BLOCK = 64
ROWS = tl.constexpr(16)


@triton.jit
def products_kernel(
    query, mean, turns, chosen, lengths, slots, out, positions, PAIRS: tl.constexpr, PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr, GROUP: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (batch * kv_heads, blocks of positions): see `TurnedCentres.products`."""
    head = tl.program_id(0) % KV_HEADS
    slot = tl.load(slots + tl.program_id(0) // KV_HEADS)
    length = tl.where(slot >= 0, tl.load(lengths + tl.maximum(slot, 0)), 0)
    position = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if tl.program_id(1) * BLOCK < length:
        inside = (position < length) & (position < positions)
        pair = tl.arange(0, PADDED)
        there = pair < PAIRS
        counts = tl.load(chosen + slot).to(tl.float32)
        one = tl.load(mean + head * HEAD_DIM + pair, mask=there, other=0) * counts
        other = tl.load(mean + head * HEAD_DIM + PAIRS + pair, mask=there, other=0) * counts
        table = turns + position.to(tl.int64)[:, None] * (2 * PAIRS) + pair[None, :]
        cosine = tl.load(table, mask=inside[:, None] & there[None, :], other=0)
        sine = tl.load(table + PAIRS, mask=inside[:, None] & there[None, :], other=0)
        for start in tl.static_range(0, GROUP, ROWS):
            row = start + tl.arange(0, ROWS)
            mine = (tl.program_id(0) * GROUP + row).to(tl.int64)
            mask = (row < GROUP)[:, None] & there[None, :]
            first = tl.load(query + mine[:, None] * HEAD_DIM + pair[None, :], mask=mask, other=0).to(tl.float32)
            second = tl.load(query + mine[:, None] * HEAD_DIM + PAIRS + pair[None, :], mask=mask, other=0).to(
                tl.float32
            )
            along = first * one[None, :] + second * other[None, :]
            across = second * one[None, :] - first * other[None, :]
            product = tl.dot(along, tl.trans(cosine), input_precision="tf32x3")
            product = tl.dot(across, tl.trans(sine), product, input_precision="tf32x3")
            target = out + mine[:, None] * positions + position[None, :]
            tl.store(target, product, mask=(row < GROUP)[:, None] & inside[None, :])


def products_at_positions(query: Tensor, centres: TurnedCentres, slots: Tensor, out: Tensor) -> None:
    """Write float32 `out` [at least batch, heads, positions] up to each request's length; the rest is left as it is."""
    batch, heads, head_dim = query.shape
    kv_heads, pairs, positions = len(centres.mean), centres.turns.shape[-1], out.shape[-1]
    assert query.is_contiguous() and centres.mean.is_contiguous() and centres.turns.is_contiguous()
    assert out.is_contiguous() and positions <= len(centres.turns)
    products_kernel[(batch * kv_heads, triton.cdiv(positions, BLOCK))](
        query,
        centres.mean,
        centres.turns,
        centres.chosen,
        centres.lengths,
        slots,
        out,
        positions,
        PAIRS=pairs,
        PADDED=max(16, triton.next_power_of_2(pairs)),
        HEAD_DIM=head_dim,
        GROUP=heads // kv_heads,
        KV_HEADS=kv_heads,
        BLOCK=BLOCK,
        num_warps=4,
    )
