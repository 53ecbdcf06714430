"""The page manager: page tables and a circular free list, all of it on the device.

One table row belongs to one (request slot, layer, KV head). Its high-tier pages fill the row from the left,
its low-tier pages from the right (LeanKV, arXiv 2412.03131, section 5). Every operation is one `resize` of many rows at
once: each row counts its own need, a prefix sum gives each its place in the free list, then all write. Nothing is read
back to the host.

A call that cannot be met in full writes nothing: it records the shortage on the device, clears `OK` in `state` and is
counted in `UNMET`, so that one read tells of many calls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leankv.kernels import pages_reference, pages_torch
from leankv.kernels.paths import Path, path_for

HEAD, TAIL, FREE, DEFICIT, OVERFLOW, UNMET, OK = range(7)
EMPTY = -1
SCRATCH_BLOCKS = 1024


class PageIntegrityError(RuntimeError):
    """A page is lost, held twice, or a counter disagrees with the tables."""


@dataclass(frozen=True, eq=False)
class PageTables:
    """Tables of `slots * layers * kv_heads` rows over one pool of equal pages; the fields are tensors on one device.

    table            int32 [rows, max_pages]: page numbers, `EMPTY` where none
    counts           int32 [rows, 2]: tokens held in the high and the low tier
    tokens_per_page  int32 [rows, 2]: tokens that a page of the tier holds, 0 where the row has no such tier
    free_list        int32 [pages]: circular; `FREE` entries from `HEAD` on are the free pages
    state            int32 [7]: HEAD, TAIL, FREE, DEFICIT (largest shortage in pages), OVERFLOW (largest excess of a
                     row over max_pages), UNMET (calls that were not met since `forget_unmet`), OK (1 if the last
                     call was met)
    scratch          int32 [SCRATCH_BLOCKS, 3]: block sums between the launches of one call
    """

    slots: int
    layers: int
    kv_heads: int
    table: Tensor
    counts: Tensor
    tokens_per_page: Tensor
    free_list: Tensor
    state: Tensor
    scratch: Tensor

    @property
    def rows(self) -> int:
        return self.table.shape[0]

    @property
    def max_pages(self) -> int:
        return self.table.shape[1]

    @property
    def pages(self) -> int:
        return self.free_list.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of tables, list and counters: memory that the pool does not have."""
        held = (self.table, self.counts, self.tokens_per_page, self.free_list, self.state, self.scratch)
        return sum(tensor.nbytes for tensor in held)


def page_tables(
    slots: int, layers: int, kv_heads: int, max_pages: int, pages: int, device: torch.device | str = "cpu"
) -> PageTables:
    """Empty tables over `pages` free pages; a row can hold at most `max_pages` of them."""
    rows = slots * layers * kv_heads

    def filled(value: int, *shape: int) -> Tensor:
        return torch.full(shape, value, dtype=torch.int32, device=device)

    return PageTables(
        slots=slots,
        layers=layers,
        kv_heads=kv_heads,
        table=filled(EMPTY, rows, max_pages),
        counts=filled(0, rows, 2),
        tokens_per_page=filled(0, rows, 2),
        free_list=torch.arange(pages, dtype=torch.int32, device=device),
        state=torch.tensor([0, 0, pages, 0, 0, 0, 1], dtype=torch.int32, device=device),
        scratch=filled(0, SCRATCH_BLOCKS, 3),
    )


def rows_of(tables: PageTables, slots: Tensor, layers: slice = slice(None)) -> Tensor:
    """Rows int32 [len(slots), layers, kv_heads] of request `slots` (int [batch]; -1 is padding and gives -1)."""
    layer = torch.arange(tables.layers, device=slots.device, dtype=torch.int32)[layers]
    head = torch.arange(tables.kv_heads, device=slots.device, dtype=torch.int32)
    within = layer[:, None] * tables.kv_heads + head
    rows = slots.to(torch.int32)[:, None, None] * (tables.layers * tables.kv_heads) + within
    return torch.where(slots[:, None, None] >= 0, rows, -1).to(torch.int32)


def resize(
    tables: PageTables, rows: Tensor, tokens: Tensor, tokens_per_page: Tensor | None = None, path: Path | None = None
) -> None:
    """Let every row hold exactly `tokens` tokens a tier: freed pages join the list's tail, then needed leave its head.

    rows             int32 [n], each at most once; -1 is padding
    tokens           int32 [n, 2], not negative
    tokens_per_page  int32 [n, 2], the rows' page capacities from now on; unchanged where None
    path             which of the three forms runs; by default the device's

    All or nothing: if the pages freed and the free ones do not cover the need, or a row would pass `max_pages`, only
    `state` changes (`OK`, `UNMET`, and `DEFICIT` or `OVERFLOW`). Page contents are the caller's.
    """
    rows, tokens = rows.reshape(-1), tokens.reshape(-1, 2)
    assert tokens.shape[0] == rows.shape[0], "one pair of token counts a row"
    if tokens_per_page is None:
        tokens_per_page = tables.tokens_per_page[rows.clamp(min=0)]
    chosen = path_for(tables.table, path)
    if chosen == "reference":
        pages_reference.resize(tables, rows, tokens, tokens_per_page)
    elif chosen == "torch":
        pages_torch.resize(tables, rows, tokens, tokens_per_page)
    else:
        from leankv.kernels import pages_triton

        pages_triton.resize(tables, rows, tokens, tokens_per_page.reshape(-1, 2))


def resize_if_possible(tables: PageTables, rows: Tensor, tokens: Tensor, path: Path | None = None) -> None:
    """As `resize`, but a shortage is not recorded (only `last_met` tells): for changes that can wait."""
    recorded = tables.state[DEFICIT:OK].clone()
    resize(tables, rows, tokens, path=path)
    tables.state[DEFICIT:OK] = recorded


def free(tables: PageTables, rows: Tensor, path: Path | None = None) -> None:
    """Give all pages of the rows back; see `resize`."""
    rows = rows.reshape(-1)
    resize(tables, rows, torch.zeros(rows.shape[0], 2, dtype=torch.int32, device=rows.device), path=path)


def last_met(tables: PageTables) -> Tensor:
    """Whether the last call was met: bool scalar tensor on the device."""
    return tables.state[OK] == 1


def forget_unmet(tables: PageTables) -> None:
    """Count unmet calls anew; the largest shortages stay on record."""
    tables.state[UNMET].zero_()


def all_met(tables: PageTables) -> Tensor:
    """Whether every call since `forget_unmet` was met: bool scalar tensor on the device."""
    return tables.state[UNMET] == 0


def pages_held(counts: Tensor, tokens_per_page: Tensor) -> Tensor:
    """Pages that `counts` tokens take: both int [..., 2]; a tier with 0 tokens a page holds none."""
    per = tokens_per_page.clamp(min=1)
    return torch.where(tokens_per_page > 0, (counts + per - 1) // per, 0)


def check_integrity(tables: PageTables) -> None:
    """Hold every page in exactly one place and every counter to the tables; copies them to the host.

    Raises PageIntegrityError.
    """
    table, counts = tables.table.cpu(), tables.counts.cpu()
    head, tail, free_pages, *_ = tables.state.tolist()
    if not (0 <= free_pages <= tables.pages and tail == (head + free_pages) % tables.pages):
        raise PageIntegrityError(f"head {head}, tail {tail} and {free_pages} free pages disagree")
    if bool((counts < 0).any()):
        raise PageIntegrityError("a negative token count")
    held = pages_held(counts, tables.tokens_per_page.cpu())
    column = torch.arange(tables.max_pages)
    used = (column < held[:, :1]) | (column >= tables.max_pages - held[:, 1:])
    if bool((held.sum(1) > tables.max_pages).any()) or bool(((table != EMPTY) != used).any()):
        raise PageIntegrityError("a row's pages disagree with its token counts")
    listed = tables.free_list.cpu().roll(-head)[:free_pages]
    every = torch.cat([table[used], listed]).sort().values
    if not torch.equal(every, torch.arange(tables.pages, dtype=torch.int32)):
        raise PageIntegrityError("a page is lost or in two places")
