"""The page manager's resize, one row and one page at a time: the form to read and the oracle of the other two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from leankv.kernels.pages import PageTables


def resize(tables: PageTables, rows: Tensor, tokens: Tensor, tokens_per_page: Tensor) -> None:
    """See `pages.resize`."""
    plan = []
    for row, wanted, capacity in zip(rows.tolist(), tokens.tolist(), tokens_per_page.tolist(), strict=True):
        if row < 0:
            continue
        old = [
            _pages(*pair)
            for pair in zip(tables.counts[row].tolist(), tables.tokens_per_page[row].tolist(), strict=True)
        ]
        new = [_pages(*pair) for pair in zip(wanted, capacity, strict=True)]
        plan.append((row, wanted, capacity, old, new))

    head, _tail, free, deficit, overflow, unmet, _ok = tables.state.tolist()
    freed = sum(max(o - n, 0) for _, _, _, old, new in plan for o, n in zip(old, new, strict=True))
    needed = sum(max(n - o, 0) for _, _, _, old, new in plan for o, n in zip(old, new, strict=True))
    excess = max([sum(new) - tables.max_pages for *_, new in plan], default=0)
    if needed > free + freed or excess > 0:
        short, over = max(deficit, needed - free - freed), max(overflow, excess)
        tables.state[3:] = tables.state.new_tensor([short, over, unmet + 1, 0])
        return

    for row, _, _, old, new in plan:
        for tier in (0, 1):
            for page in range(new[tier], old[tier]):
                column = _column(page, tier, tables.max_pages)
                tables.free_list[(head + free) % tables.pages] = tables.table[row, column]
                tables.table[row, column] = -1
                free += 1
    for row, wanted, capacity, old, new in plan:
        for tier in (0, 1):
            for page in range(old[tier], new[tier]):
                tables.table[row, _column(page, tier, tables.max_pages)] = tables.free_list[head]
                head, free = (head + 1) % tables.pages, free - 1
        tables.counts[row] = tables.counts.new_tensor(wanted)
        tables.tokens_per_page[row] = tables.tokens_per_page.new_tensor(capacity)
    tail = (head + free) % tables.pages
    tables.state[:] = tables.state.new_tensor([head, tail, free, deficit, overflow, unmet, 1])


def _pages(tokens: int, per_page: int) -> int:
    return -(-tokens // per_page) if per_page else 0


def _column(page: int, tier: int, max_pages: int) -> int:
    return page if tier == 0 else max_pages - 1 - page
