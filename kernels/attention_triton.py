# mypy: disable-error-code="no-untyped-def"
"""Launches of decode attention on CUDA: split over the sequence, merge, contributions.

One more comes before them if queries rotate, and one if keys were centred by position.

The grid depends on the batch bucket and the workspace alone. How many splits a head uses, and how they are shared
between its tiers (by bytes), is decided on the device from the token counts.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor

from leankv.kernels.attention import HEADS_A_PROGRAM, DecodeWorkspace
from leankv.kernels.attention_kernels import contributions_kernel, merge_kernel, split_kernel
from leankv.kernels.codecs import codec_of
from leankv.kernels.rope_triton import products_at_positions
from leankv.kernels.rotation_triton import rotate_queries

if TYPE_CHECKING:
    from leankv.kernels.attention import LayerCache
    from leankv.serving.pages import PageLayout

TILE = 32
LEAST_TILES = 4
PROGRAMS_A_MULTIPROCESSOR = 48
MOST_SPLITS = 128
CONTRIBUTION_BLOCK = 1024
NUM_STAGES = 5
"""Five give two tiles in shared memory: one is read while the other arrives (two stages go to the page number)."""


def warps_for(layouts: tuple[PageLayout, ...]) -> int:
    """Warps a program: one needs no barriers, as long as its registers hold a tile's sums (see `compile_report.py`)."""
    wide = any(layout.format.k_bits == 16 or layout.format.key_axis == "channel" for layout in layouts)
    return max(1, layouts[0].head_dim // 128) * (2 if wide and layouts[0].head_dim > 64 else 1)


def splits_for(batch: int, heads: int, kv_heads: int, capacity: int, multiprocessors: int) -> int:
    """Splits a head: enough one-warp programs for several waves, so that ragged heads even out; each at least 4 tiles.

    At least two, because each split stays within one tier.
    """
    rows = batch * kv_heads * triton.cdiv(heads // kv_heads, HEADS_A_PROGRAM)
    wanted = triton.cdiv(PROGRAMS_A_MULTIPROCESSOR * multiprocessors, rows)
    return max(2, min(wanted, MOST_SPLITS, triton.cdiv(capacity, LEAST_TILES * TILE)))


def decode_workspace(
    batch: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    capacity: int,
    splits: int,
    device: torch.device | str,
    positions: int = 0,
) -> DecodeWorkspace:
    """Buffers for batches of up to `batch` requests of up to `capacity` tokens held.

    positions: as many as a request may have, where keys are centred by position.
    """

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    return DecodeWorkspace(
        query=empty(batch, heads, head_dim),
        partial=empty(batch, heads, splits, head_dim),
        partial_lse=empty(batch, heads, splits),
        weights=empty(batch, heads, capacity, dtype=torch.float16),
        maxima=empty(batch, heads, triton.cdiv(capacity, TILE) + 1),
        lse=empty(batch, heads),
        products=empty(batch, heads, positions),
    )


@dataclass(frozen=True, eq=False)
class DecodeBuffers:
    """Memory for the workspaces of all batches up to the largest, made once and shared by them.

    query, weights, maxima, lse, products: as in `DecodeWorkspace`, for the largest batch. partial float32 [n, head_dim]
    and partial_lse float32 [n]: n query heads' splits, as many as any batch has.
    """

    query: Tensor
    partial: Tensor
    partial_lse: Tensor
    weights: Tensor
    maxima: Tensor
    lse: Tensor
    products: Tensor
    kv_heads: int
    capacity: int
    multiprocessors: int

    def for_batch(self, batch: int) -> DecodeWorkspace:
        """The workspace of a batch: views, which allocate nothing."""
        _, heads, head_dim = self.query.shape
        splits = splits_for(batch, heads, self.kv_heads, self.capacity, self.multiprocessors)
        n = batch * heads * splits
        return DecodeWorkspace(
            query=self.query[:batch],
            partial=self.partial[:n].view(batch, heads, splits, head_dim),
            partial_lse=self.partial_lse[:n].view(batch, heads, splits),
            weights=self.weights[:batch],
            maxima=self.maxima[:batch],
            lse=self.lse[:batch],
            products=self.products[:batch],
        )


def decode_buffers(
    batch: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    capacity: int,
    scored: bool,
    device: torch.device,
    positions: int = 0,
) -> DecodeBuffers:
    """Buffers for up to `batch` requests of up to `capacity` tokens; `scored`: contributions will be asked for.

    positions: as many as a request may have, where keys are centred by position.
    """
    units = multiprocessors(device)
    splits = max(each * splits_for(each, heads, kv_heads, capacity, units) for each in range(1, batch + 1))

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    return DecodeBuffers(
        query=empty(batch, heads, head_dim),
        partial=empty(splits * heads, head_dim),
        partial_lse=empty(splits * heads),
        weights=empty(batch, heads, capacity if scored else 0, dtype=torch.float16),
        maxima=empty(batch, heads, triton.cdiv(capacity, TILE) + 1 if scored else 0),
        lse=empty(batch, heads),
        products=empty(batch, heads, positions),
        kv_heads=kv_heads,
        capacity=capacity,
        multiprocessors=units,
    )


def multiprocessors(device: torch.device) -> int:
    """Of a GPU; 1 for the interpreter."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 1


def decode_attention(
    query: Tensor,
    cache: LayerCache,
    slots: Tensor,
    scale: float,
    output: Tensor,
    contributions: Tensor | None,
    workspace: DecodeWorkspace,
) -> None:
    """See `kernels/attention.py`. The workspace may be larger than the batch."""
    batch, heads, head_dim = query.shape
    group = heads // cache.kv_heads
    assert query.is_contiguous() and output.is_contiguous() and cache.pool.is_contiguous()
    assert cache.page_table.stride(-1) == cache.token_counts.stride(-1) == 1 and cache.tier_formats.is_contiguous()
    assert batch <= workspace.partial.shape[0] and workspace.partial.shape[1::2] == (heads, head_dim)
    if cache.centres is not None:
        products_at_positions(query, cache.centres, slots, workspace.products)
    if cache.rotated is not None:
        rotate_queries(query, cache.rotated, slots, workspace.query)
        query = workspace.query
    splits = workspace.partial.shape[2]
    blocks = triton.cdiv(group, HEADS_A_PROGRAM)
    counting = {"GROUP": group, "KV_HEADS": cache.kv_heads, "TILE": TILE}
    split_kernel[(batch * cache.kv_heads * blocks, splits)](
        cache.pool,
        cache.pool.view(torch.int16),
        cache.pool.view(torch.int32),
        query,
        cache.page_table,
        cache.token_counts,
        cache.tier_formats,
        slots,
        workspace.partial,
        workspace.partial_lse,
        workspace.weights,
        workspace.maxima,
        workspace.products,
        scale * math.log2(math.e),
        cache.page_table.stride(0),
        cache.page_table.stride(1),
        cache.token_counts.stride(0),
        cache.token_counts.stride(1),
        workspace.weights.shape[-1],
        workspace.maxima.shape[-1],
        cache.page_table.shape[-1],
        workspace.products.shape[-1],
        splits,
        CODECS=tuple(codec_of(layout) for layout in cache.layouts),
        PAGE_WORDS=cache.pool.shape[1] // 2,
        HEAD_DIM=head_dim,
        LEAST_TILES=LEAST_TILES,
        KEEP_WEIGHTS=contributions is not None,
        BY_POSITION=cache.centres is not None,
        ASM=not interpreted(),
        **counting,
        num_warps=warps_for(cache.layouts),
        num_stages=NUM_STAGES,
    )
    merge_kernel[(batch * heads,)](
        workspace.partial,
        workspace.partial_lse,
        workspace.lse,
        output,
        splits,
        HEAD_DIM=head_dim,
        PADDED_DIM=triton.next_power_of_2(head_dim),
        PADDED_SPLITS=triton.next_power_of_2(splits),
        num_warps=4,
    )
    if contributions is not None:
        capacity = min(contributions.shape[-1], workspace.weights.shape[-1])
        contributions_kernel[(batch * cache.kv_heads, triton.cdiv(capacity, CONTRIBUTION_BLOCK))](
            workspace.weights,
            workspace.maxima,
            workspace.lse,
            cache.token_counts,
            slots,
            contributions,
            cache.token_counts.stride(0),
            cache.token_counts.stride(1),
            workspace.weights.shape[-1],
            workspace.maxima.shape[-1],
            contributions.stride(0),
            contributions.stride(1),
            BLOCK=CONTRIBUTION_BLOCK,
            **counting,
            num_warps=4,
        )


def interpreted() -> bool:
    """Whether Triton runs its kernels in its CPU interpreter in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"
