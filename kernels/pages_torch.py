"""The page manager's resize, vectorised: the form that the engine uses on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from leankv.kernels.pages import PageTables


def resize(tables: PageTables, rows: Tensor, tokens: Tensor, tokens_per_page: Tensor) -> None:
    """See `pages.resize`."""
    live = rows >= 0
    rows, tokens, tokens_per_page = rows[live].long(), tokens[live], tokens_per_page[live]
    old, new = _pages(tables.counts[rows], tables.tokens_per_page[rows]), _pages(tokens, tokens_per_page)
    dropped, grown = (old - new).clamp(min=0), (new - old).clamp(min=0)

    head, _tail, free, deficit, overflow, unmet, _ok = tables.state.tolist()
    freed, needed = int(dropped.sum()), int(grown.sum())
    excess = int((new.sum(1) - tables.max_pages).max()) if len(rows) else 0
    if needed > free + freed or excess > 0:
        short, over = max(deficit, needed - free - freed), max(overflow, excess)
        tables.state[3:] = tables.state.new_tensor([short, over, unmet + 1, 0])
        return

    if freed:
        row, column = _places(rows, new, dropped, tables.max_pages)
        place = (torch.arange(freed, device=rows.device) + head + free) % tables.pages
        tables.free_list[place] = tables.table[row, column]
        tables.table[row, column] = -1
    if needed:
        row, column = _places(rows, old, grown, tables.max_pages)
        place = (torch.arange(needed, device=rows.device) + head) % tables.pages
        tables.table[row, column] = tables.free_list[place]
    tables.counts[rows] = tokens
    tables.tokens_per_page[rows] = tokens_per_page
    head, free = (head + needed) % tables.pages, free + freed - needed
    tail = (head + free) % tables.pages
    tables.state[:] = tables.state.new_tensor([head, tail, free, deficit, overflow, unmet, 1])


def _pages(tokens: Tensor, per_page: Tensor) -> Tensor:
    per = per_page.clamp(min=1)
    return torch.where(per_page > 0, (tokens + per - 1) // per, 0)


def _places(rows: Tensor, first: Tensor, number: Tensor, max_pages: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of `number` [n, 2] pages from page `first` [n, 2] on: by row, high tier before low."""
    number = number.reshape(-1)
    owner = torch.repeat_interleave(torch.arange(number.shape[0], device=rows.device), number)
    before = (number.cumsum(0) - number)[owner]
    page = first.reshape(-1)[owner] + torch.arange(owner.shape[0], device=rows.device) - before
    return rows[owner // 2], torch.where(owner % 2 == 0, page, max_pages - 1 - page)
