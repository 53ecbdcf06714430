# mypy: disable-error-code="no-untyped-def"
"""Cached tokens moved by lists on the device: byte for byte within a tier, or requantized into the other.

A program serves a row of the page tables and walks its own list, so the launch does not depend on how many tokens move,
and a row without any costs one read.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from leankv.kernels import segments
from leankv.kernels.bookkeeping_triton import page_of
from leankv.kernels.pages import PageTables
from leankv.kernels.store_kernels import read_bookkeeping, read_side, write_bookkeeping, write_side
from leankv.kernels.store_triton import layout_constants
from leankv.serving.pages import PageLayout

TOKENS_AT_ONCE = 16


def copy_tokens(
    pool: Tensor,
    tables: PageTables,
    layout: PageLayout,
    rows: Tensor,
    tier: int,
    lists: tuple[Tensor, Tensor],
    first: Tensor,
    number: Tensor,
) -> None:
    """Copy token lists[0][r, first + k] of a tier of row r to lists[1][r, first + k], for k below `number`, in order.

    rows int32 [n], -1 is padding; lists int32 [n, width] (or one list for all rows: stride 0); first and number int32
    [n]. A token may be copied where a later one comes from only if it lies `TOKENS_AT_ONCE` or more before it.
    """
    sources, targets = lists
    assert layout.format.key_axis == "token", "keys per channel move by groups only"
    assert sources.stride() == targets.stride() and sources.stride(1) == 1
    if len(rows):
        copy_kernel[(len(rows),)](
            pool, tables.table, rows, sources, targets, first, number, sources.stride(0), FIELDS=fields_of(layout),
            TIER=tier, TOKENS=layout.tokens, MAX_PAGES=tables.max_pages, PAGE_BYTES=layout.page_bytes,
            BLOCK=TOKENS_AT_ONCE, num_warps=4,
        )  # fmt: skip


def requantize_tokens(
    pool: Tensor,
    tables: PageTables,
    layouts: tuple[PageLayout, PageLayout],
    rows: Tensor,
    sources: Tensor,
    first: Tensor,
    number: Tensor,
    scratch: Tensor,
    errors: Tensor,
) -> None:
    """Store token sources[r, k] of the high tier of row r anew as token first[r] + k of the low one, k < number[r].

    rows int32 [n], -1 is padding; sources int32 [n, width], first and number int32 [n]. Score and position travel with
    the token; keys stay transformed as they are. scratch: float32 [at least n, 2, TOKENS_AT_ONCE, head_dim].
    """
    if len(rows):
        requantize_kernel[(len(rows),)](
            pool, pool.view(torch.int16), pool.view(torch.int32), tables.table, rows, sources, first, number, scratch,
            errors, sources.stride(0), FROM=constants_of(layouts[0]), TO=constants_of(layouts[1]),
            MAX_PAGES=tables.max_pages, BLOCK=TOKENS_AT_ONCE, num_warps=4,
        )  # fmt: skip


def constants_of(layout: PageLayout) -> tuple[tuple[str, Any], ...]:
    """What the kernel knows of a layout when it is compiled, hashable."""
    return tuple({**layout_constants(layout), "TOKENS": layout.tokens}.items())


def fields_of(layout: PageLayout) -> tuple[tuple[int, int], ...]:
    """Where each field starts in a page, and its bytes a token."""
    one = torch.empty(1, layout.page_bytes, dtype=torch.uint8)
    views = [*segments.key_codes(one, layout), *segments.value_codes(one, layout)]
    if layout.format.kind == "int":
        views += [segments.key_meta(one, layout), segments.value_meta(one, layout)]
    if layout.bookkeeping:
        views += [segments.scores(one, layout), segments.positions(one, layout)]
    return tuple((int(view.storage_offset()) * view.itemsize, view.shape[-1] * view.itemsize) for view in views)


@triton.constexpr_function
def of(constants, name):
    return dict(constants)[name]


@triton.constexpr_function
def fields_in(fields):
    return len(fields)


@triton.constexpr_function
def field_start(fields, index):
    return fields[index][0]


@triton.constexpr_function
def field_bytes(fields, index):
    return fields[index][1]


@triton.constexpr_function
def padded_bytes(fields, index):
    return triton.next_power_of_2(fields[index][1])


@triton.jit
def copy_kernel(
    pool8, table, rows, sources, targets, first, number, stride, FIELDS: tl.constexpr, TIER: tl.constexpr,
    TOKENS: tl.constexpr, MAX_PAGES: tl.constexpr, PAGE_BYTES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows)."""
    index = tl.program_id(0)
    listed = tl.load(rows + index)
    row = tl.maximum(listed, 0).to(tl.int64)
    count = tl.where(listed >= 0, tl.load(number + index), 0)
    mine = index.to(tl.int64) * stride + tl.load(first + index)
    for begin in range(0, count, BLOCK):
        move = begin + tl.arange(0, BLOCK)
        there = move < count
        source = tl.load(sources + mine + move, mask=there, other=0)
        target = tl.load(targets + mine + move, mask=there, other=0)
        from_page, from_place = page_of(table, row, source, TIER, TOKENS, MAX_PAGES, there)
        to_page, to_place = page_of(table, row, target, TIER, TOKENS, MAX_PAGES, there)
        for f in tl.static_range(fields_in(FIELDS)):
            byte = tl.arange(0, padded_bytes(FIELDS, f))
            mask = there[:, None] & (byte < field_bytes(FIELDS, f))[None, :]
            at = from_page * PAGE_BYTES + field_start(FIELDS, f) + from_place * field_bytes(FIELDS, f)
            data = tl.load(pool8 + at[:, None] + byte[None, :], mask=mask, other=0)
            at = to_page * PAGE_BYTES + field_start(FIELDS, f) + to_place * field_bytes(FIELDS, f)
            tl.store(pool8 + at[:, None] + byte[None, :], data, mask=mask)
        # What a later turn overwrites must have been read by all warps.
        tl.debug_barrier()


@triton.jit
def requantize_kernel(
    pool8, pool16, pool32, table, rows, sources, first, number, scratch, errors, stride, FROM: tl.constexpr,
    TO: tl.constexpr, MAX_PAGES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows): tokens go through `scratch`, BLOCK at a time, since packing reads a row's channels several times."""
    HEAD_DIM: tl.constexpr = of(FROM, "HEAD_DIM")
    PADDED: tl.constexpr = of(FROM, "PADDED")
    index = tl.program_id(0)
    listed = tl.load(rows + index)
    row = tl.maximum(listed, 0).to(tl.int64)
    count = tl.where(listed >= 0, tl.load(number + index), 0)
    target_first = tl.load(first + index)
    keys = scratch + (index.to(tl.int64) * 2 * BLOCK + tl.arange(0, BLOCK)) * HEAD_DIM
    values = keys + BLOCK * HEAD_DIM
    for begin in range(0, count, BLOCK):
        move = begin + tl.arange(0, BLOCK)
        live = move < count
        source = tl.load(sources + index.to(tl.int64) * stride + move, mask=live, other=0)
        page, place = page_of(table, row, source, 0, of(FROM, "TOKENS"), MAX_PAGES, live)
        page = page * of(FROM, "PAGE_BYTES")
        place = place.to(tl.int64)
        read_side(
            pool8, pool16, pool32, page, place, live, keys, HEAD_DIM, PADDED, of(FROM, "IS_FLOAT"), False,
            of(FROM, "K_BITS"), of(FROM, "K_GROUPS"), of(FROM, "K_START"), of(FROM, "K_HIGH"), of(FROM, "K_META"), 1,
        )  # fmt: skip
        read_side(
            pool8, pool16, pool32, page, place, live, values, HEAD_DIM, PADDED, of(FROM, "IS_FLOAT"), False,
            of(FROM, "V_BITS"), of(FROM, "V_GROUPS"), of(FROM, "V_START"), of(FROM, "V_HIGH"), of(FROM, "V_META"), 1,
        )  # fmt: skip
        score, position = read_bookkeeping(
            pool8, pool16, pool32, page, place, live, of(FROM, "BOOKKEEPING"), of(FROM, "SCORES"),
            of(FROM, "POSITIONS"),
        )  # fmt: skip
        tl.debug_barrier()
        page, place = page_of(table, row, target_first + move, 1, of(TO, "TOKENS"), MAX_PAGES, live)
        page = page * of(TO, "PAGE_BYTES")
        place = place.to(tl.int64)
        bad = write_side(
            pool8, pool16, pool32, page, place, values, values, live, HEAD_DIM, PADDED, False, 0, of(TO, "IS_FLOAT"),
            of(TO, "V_BITS"), of(TO, "V_GROUPS"), of(TO, "V_START"), of(TO, "V_HIGH"), of(TO, "V_META"),
        )  # fmt: skip
        bad |= write_side(
            pool8, pool16, pool32, page, place, keys, keys, live, HEAD_DIM, PADDED, False, 0, of(TO, "IS_FLOAT"),
            of(TO, "K_BITS"), of(TO, "K_GROUPS"), of(TO, "K_START"), of(TO, "K_HIGH"), of(TO, "K_META"),
        )  # fmt: skip
        write_bookkeeping(
            pool8, pool16, pool32, page, place, score, position, live, of(TO, "BOOKKEEPING"), of(TO, "SCORES"),
            of(TO, "POSITIONS"),
        )  # fmt: skip
        wrong = tl.sum(bad)
        if wrong > 0:
            tl.atomic_add(errors, wrong)
        tl.debug_barrier()
