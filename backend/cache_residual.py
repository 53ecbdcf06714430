"""KIVI's window in the unified cache: the newest tokens in full precision, in the order of their positions.

When the window is full, its oldest block is quantized as a group into the low tier and the others move up. Which
windows are full the host knows; whether there were pages for it, the device alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leankv.kernels import bookkeeping
from leankv.kernels import pages as pg
from leankv.kernels.classify import HIGH, LOW
from leankv.kernels.layout import locate
from leankv.kernels.store import gather, store
from leankv.serving.policies.budgets import Residual

if TYPE_CHECKING:
    from leankv.backend.cache import KVCache
    from leankv.backend.cache_slots import Request
    from leankv.serving.pool_plan import PolicyLayout


def flush_full_windows(cache: KVCache, slots: Sequence[int]) -> None:
    """Quantize the oldest block of every request of `slots` whose window has no room for another token.

    Which are full follows from the requests' lengths, so the host knows without asking. Where pages do not
    suffice nothing changes, and the window is one block longer from then on.
    """
    for slot in slots:
        if _is_full(cache.requests[slot]):
            flush(cache, cache.requests[slot].layout, cache.rows_of(slot))


def _is_full(request: Request) -> bool:
    budget = request.layout.policy.budget
    if not isinstance(budget, Residual) or request.done < request.prompt:
        return False
    return request.done >= budget.recent and (request.done - budget.recent) % budget.block == 0


def flush(cache: KVCache, laid: PolicyLayout, rows: Tensor) -> None:
    """Quantize the oldest block of `rows` int32 [n] (-1 is padding) of requests under KIVI whose windows are full."""
    tables, budget, (high, low) = cache.tables, laid.policy.budget, laid.tiers
    assert isinstance(budget, Residual)
    before = tables.counts[rows.clamp(min=0)]
    # A step that was short of pages is tried again, and its window may have been flushed.
    full = (before[:, 0] >= budget.recent) & (rows >= 0)
    pg.resize_if_possible(tables, torch.where(full, rows, -1), _plus(before, 1, budget.block), path=cache.path)
    going = full & pg.last_met(tables)
    listed = torch.where(going, rows, -1)

    table = tables.table[rows.clamp(min=0)]
    oldest = torch.arange(budget.block, device=rows.device).expand(len(rows), -1)
    page, place = locate(table, oldest, HIGH, high)
    tokens = gather(cache.pool, high, _there(page, going), place.T.contiguous(), path=cache.path)
    page, place = locate(table, oldest + before[:, 1:], LOW, low)
    store(cache.pool, low, _there(page, going), place.T.contiguous(), tokens, errors=cache.errors, path=cache.path)

    bookkeeping.drop_oldest(cache.pool, tables, high, listed, budget.block, cache.path)
    pg.resize(tables, listed, _plus(tables.counts[rows.clamp(min=0)], 0, -budget.block), path=cache.path)


def _plus(counts: Tensor, tier: int, tokens: int) -> Tensor:
    """`counts` int32 [n, 2] with `tokens` more in one tier."""
    more = counts.clone()
    more[:, tier] += tokens
    return more


def _there(page: Tensor, going: Tensor) -> Tensor:
    """[block, rows] out of [rows, block], -1 where nothing goes on."""
    return torch.where(going[:, None], page, -1).T.contiguous()
