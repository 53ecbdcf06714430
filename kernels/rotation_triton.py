# mypy: disable-error-code="no-untyped-def"
"""The Hadamard rotation on CUDA: its matrix is made from the indices, its products run in float16 twice.

A float32 x is split into a float16 and the float16 of what is left, so that products with +-1 lose about 2^-22 of x.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from leankv.kernels.transforms import rotation_block

ROWS = 16


@triton.jit
def signs(row, column, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr):
    """float16 [rows, columns]: entries of the Hadamard matrix times sqrt(BLOCK), zero outside the blocks."""
    bits = row[:, None] & column[None, :] & (BLOCK - 1)
    bits = bits ^ (bits >> 4)
    bits = bits ^ (bits >> 2)
    bits = bits ^ (bits >> 1)
    same = (row[:, None] // BLOCK == column[None, :] // BLOCK) & (row < HEAD_DIM)[:, None]
    return tl.where(same & (column < HEAD_DIM)[None, :], 1 - 2 * (bits & 1), 0).to(tl.float16)


@triton.jit
def rotated(x, matrix, BLOCK: tl.constexpr):
    """float32 x [rows, n] times `matrix` [n, m] of `signs`, normalised."""
    high = x.to(tl.float16)
    low = (x - high.to(tl.float32)).to(tl.float16)
    product = tl.dot(high, matrix, out_dtype=tl.float32) + tl.dot(low, matrix, out_dtype=tl.float32)
    return product * (BLOCK**-0.5)


@triton.jit
def queries_kernel(
    query, rotated_slots, slots, out, heads, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, PADDED)
    slot = tl.load(slots + tl.program_id(0))
    turned = (slot >= 0) & (tl.load(rotated_slots + tl.maximum(slot, 0)) != 0)
    place = (tl.program_id(0) * heads + row)[:, None] * HEAD_DIM + channel[None, :]
    inside = (row < heads)[:, None] & (channel < HEAD_DIM)[None, :]
    x = tl.load(query + place, mask=inside, other=0).to(tl.float32)
    if turned:
        x = rotated(x, signs(channel, channel, HEAD_DIM, BLOCK), BLOCK)
    tl.store(out + place, x, mask=inside)


def rotate_queries(query: Tensor, rotated_slots: Tensor, slots: Tensor, out: Tensor) -> None:
    """float32 `out` [batch, heads, head_dim]: the queries, rotated where the slot's keys are."""
    batch, heads, head_dim = query.shape
    queries_kernel[(batch, triton.cdiv(heads, ROWS))](
        query,
        rotated_slots,
        slots,
        out,
        heads,
        HEAD_DIM=head_dim,
        PADDED=triton.next_power_of_2(head_dim),
        BLOCK=rotation_block(head_dim),
        ROWS=ROWS,
        num_warps=4,
    )
