# mypy: disable-error-code="no-untyped-def"
"""The page manager's resize as Triton kernels: four launches, static shapes, no read-back, so a CUDA graph can hold it.

Block sums first; then every block finds its base from the sums of the blocks before it, and its rows their places by a
prefix sum within the block. Frees are written one launch before needs are met, so a page that one row frees may serve
another at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from leankv.kernels.pages import PageTables

BLOCK_ROWS = 256


def resize(tables: PageTables, rows: Tensor, tokens: Tensor, tokens_per_page: Tensor) -> None:
    """See `pages.resize`."""
    number = rows.shape[0]
    block = max(BLOCK_ROWS, triton.next_power_of_2(triton.cdiv(number, tables.scratch.shape[0])))
    blocks = triton.cdiv(number, block)
    assert rows.is_contiguous() and tokens.is_contiguous() and tokens_per_page.is_contiguous()
    assert blocks <= tables.scratch.shape[0]
    if not blocks:
        return
    asked = (rows, tokens, tokens_per_page, tables.counts, tables.tokens_per_page)
    shape = {"MAX_PAGES": tables.max_pages, "BLOCK": block}
    sums = {"blocks": blocks, "BLOCKS": triton.next_power_of_2(blocks)}
    lists = (tables.table, tables.free_list, tables.state, tables.scratch)
    count_kernel[(blocks,)](*asked, tables.scratch, number, **shape)
    release_kernel[(blocks,)](*asked, *lists, number, tables.pages, **sums, **shape)
    acquire_kernel[(blocks,)](*asked, *lists, number, tables.pages, **sums, **shape)
    commit_kernel[(1,)](tables.state, tables.scratch, tables.pages, **sums)


@triton.jit
def _pages(tokens, per_page):
    return tl.where(per_page > 0, (tokens + per_page - 1) // tl.maximum(per_page, 1), 0)


@triton.jit
def _change(rows, tokens, per_page, counts, held_per_page, number, tier, BLOCK: tl.constexpr):
    """Rows of this block, and their pages of `tier` before and after."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + index, mask=index < number, other=-1).to(tl.int64)
    live = row >= 0
    old = _pages(
        tl.load(counts + row * 2 + tier, mask=live, other=0),
        tl.load(held_per_page + row * 2 + tier, mask=live, other=0),
    )
    new = _pages(
        tl.load(tokens + index * 2 + tier, mask=live, other=0), tl.load(per_page + index * 2 + tier, mask=live, other=0)
    )
    return row, old, new


@triton.jit(do_not_specialize=["number"])
def count_kernel(
    rows, tokens, per_page, counts, held_per_page, scratch, number, MAX_PAGES: tl.constexpr, BLOCK: tl.constexpr
):
    _row, old_high, new_high = _change(rows, tokens, per_page, counts, held_per_page, number, 0, BLOCK)
    _row, old_low, new_low = _change(rows, tokens, per_page, counts, held_per_page, number, 1, BLOCK)
    grown = tl.maximum(new_high - old_high, 0) + tl.maximum(new_low - old_low, 0)
    dropped = tl.maximum(old_high - new_high, 0) + tl.maximum(old_low - new_low, 0)
    sums = scratch + tl.program_id(0) * 3
    tl.store(sums, tl.sum(grown))
    tl.store(sums + 1, tl.sum(dropped))
    tl.store(sums + 2, tl.max(new_high + new_low) - MAX_PAGES)


@triton.jit
def _totals(state, scratch, blocks, BLOCKS: tl.constexpr):
    """Needs and frees of all blocks and of the blocks before this one, the largest excess of a row, and the verdict."""
    block = tl.arange(0, BLOCKS)
    there = block < blocks
    before = block < tl.program_id(0)
    grown = tl.load(scratch + block * 3, mask=there, other=0)
    dropped = tl.load(scratch + block * 3 + 1, mask=there, other=0)
    excess = tl.max(tl.load(scratch + block * 3 + 2, mask=there, other=0))
    excess = tl.maximum(excess, 0)
    needed = tl.sum(grown)
    freed = tl.sum(dropped)
    short = needed - freed - tl.load(state + 2)
    ok = (short <= 0) & (excess == 0)
    return needed, freed, tl.sum(tl.where(before, grown, 0)), tl.sum(tl.where(before, dropped, 0)), short, excess, ok


@triton.jit
def _places(high, low, base):
    """Exclusive prefix sums of a block's pages, row by row, the high tier before the low."""
    both = high + low
    first = base + tl.cumsum(both, 0) - both
    return first, first + high


@triton.jit
def _release_tier(row, new, dropped, place, table, free_list, pages, MAX_PAGES: tl.constexpr, TIER: tl.constexpr):
    for page in range(tl.max(dropped)):
        mine = page < dropped
        column = new + page
        if TIER == 1:
            column = MAX_PAGES - 1 - column
        entry = table + row * MAX_PAGES + column
        tl.store(free_list + (place + page) % pages, tl.load(entry, mask=mine, other=0), mask=mine)
        tl.store(entry, -1, mask=mine)


@triton.jit(do_not_specialize=["number", "pages", "blocks"])
def release_kernel(
    rows, tokens, per_page, counts, held_per_page, table, free_list, state, scratch, number, pages, blocks,
    BLOCKS: tl.constexpr, MAX_PAGES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, old_high, new_high = _change(rows, tokens, per_page, counts, held_per_page, number, 0, BLOCK)
    row, old_low, new_low = _change(rows, tokens, per_page, counts, held_per_page, number, 1, BLOCK)
    _needed, _freed, _need_base, free_base, _short, _excess, ok = _totals(state, scratch, blocks, BLOCKS)
    tail = (tl.load(state) + tl.load(state + 2)) % pages
    high = tl.where(ok, tl.maximum(old_high - new_high, 0), 0)
    low = tl.where(ok, tl.maximum(old_low - new_low, 0), 0)
    high_place, low_place = _places(high, low, tail + free_base)
    _release_tier(row, new_high, high, high_place, table, free_list, pages, MAX_PAGES, 0)
    _release_tier(row, new_low, low, low_place, table, free_list, pages, MAX_PAGES, 1)


@triton.jit
def _acquire_tier(row, old, grown, place, table, free_list, pages, MAX_PAGES: tl.constexpr, TIER: tl.constexpr):
    for page in range(tl.max(grown)):
        mine = page < grown
        column = old + page
        if TIER == 1:
            column = MAX_PAGES - 1 - column
        taken = tl.load(free_list + (place + page) % pages, mask=mine, other=0)
        tl.store(table + row * MAX_PAGES + column, taken, mask=mine)


@triton.jit(do_not_specialize=["number", "pages", "blocks"])
def acquire_kernel(
    rows, tokens, per_page, counts, held_per_page, table, free_list, state, scratch, number, pages, blocks,
    BLOCKS: tl.constexpr, MAX_PAGES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, old_high, new_high = _change(rows, tokens, per_page, counts, held_per_page, number, 0, BLOCK)
    row, old_low, new_low = _change(rows, tokens, per_page, counts, held_per_page, number, 1, BLOCK)
    _needed, _freed, need_base, _free_base, _short, _excess, ok = _totals(state, scratch, blocks, BLOCKS)
    high = tl.where(ok, tl.maximum(new_high - old_high, 0), 0)
    low = tl.where(ok, tl.maximum(new_low - old_low, 0), 0)
    high_place, low_place = _places(high, low, tl.load(state) + need_base)
    _acquire_tier(row, old_high, high, high_place, table, free_list, pages, MAX_PAGES, 0)
    _acquire_tier(row, old_low, low, low_place, table, free_list, pages, MAX_PAGES, 1)
    # Old counts of both tiers must be in registers before either is overwritten.
    tl.debug_barrier()
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mine = (row >= 0) & ok
    for tier in tl.static_range(2):
        tl.store(counts + row * 2 + tier, tl.load(tokens + index * 2 + tier, mask=mine, other=0), mask=mine)
        tl.store(held_per_page + row * 2 + tier, tl.load(per_page + index * 2 + tier, mask=mine, other=0), mask=mine)


@triton.jit(do_not_specialize=["pages", "blocks"])
def commit_kernel(state, scratch, pages, blocks, BLOCKS: tl.constexpr):
    needed, freed, _need_base, _free_base, short, excess, ok = _totals(state, scratch, blocks, BLOCKS)
    head = tl.load(state)
    free = tl.load(state + 2)
    deficit = tl.load(state + 3)
    overflow = tl.load(state + 4)
    head = tl.where(ok, (head + needed) % pages, head)
    free = tl.where(ok, free + freed - needed, free)
    tl.store(state, head)
    tl.store(state + 1, (head + free) % pages)
    tl.store(state + 2, free)
    tl.store(state + 3, tl.maximum(deficit, tl.where(ok, 0, short)))
    tl.store(state + 4, tl.maximum(overflow, tl.where(ok, 0, excess)))
    tl.store(state + 5, tl.load(state + 5) + tl.where(ok, 0, 1))
    tl.store(state + 6, ok.to(tl.int32))
