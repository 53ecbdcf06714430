"""KIVI's window in the unified cache: the newest tokens in full precision, in the order of their positions.

When the window is full, its oldest block is quantized as a group into the low tier and the others move up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from leankv.kernels import bookkeeping
from leankv.kernels import pages as pg
from leankv.kernels.layout import HIGH, LOW, locate
from leankv.kernels.store import gather, store
from leankv.serving.policies.budgets import Residual

if TYPE_CHECKING:
    from leankv.backend.cache import KVCache
    from leankv.backend.cache_slots import Request


def flush_full_windows(cache: KVCache, slots: Sequence[int]) -> None:
    """Quantize the oldest block of every request of `slots` whose window has no room for another token.

    Which are full follows from the requests' lengths, so the host knows without asking. Where pages do not
    suffice nothing changes, and the window is one block longer from then on.
    """
    for slot in slots:
        if _is_full(cache.requests[slot]):
            _flush(cache, slot)


def _is_full(request: Request) -> bool:
    budget = request.layout.policy.budget
    if not isinstance(budget, Residual) or request.done < request.prompt:
        return False
    return request.done >= budget.recent and (request.done - budget.recent) % budget.block == 0


def _flush(cache: KVCache, slot: int) -> None:
    request = cache.requests[slot]
    budget, (high, low) = request.layout.policy.budget, request.layout.tiers
    assert isinstance(budget, Residual)
    rows = pg.rows_of(cache.tables, torch.tensor([slot], device=cache.pool.device)).flatten()
    before = cache.tables.counts[rows]
    held = int(before[0, 0])
    if held < budget.recent:
        return  # a step that was short of pages is tried again, and its window has been flushed
    block = torch.tensor([0, budget.block], dtype=torch.int32, device=rows.device)
    pg.resize_if_possible(cache.tables, rows, before + block, path=cache.path)
    if not cache.met:
        return
    table, device = cache.tables.table[rows.long()], cache.pool.device
    oldest = torch.arange(budget.block, device=device).expand(len(rows), -1)
    page, place = (each.T.contiguous() for each in locate(table, oldest, HIGH, high))
    tokens = gather(cache.pool, high, page, place, path=cache.path)
    page, place = (each.T.contiguous() for each in locate(table, oldest + before[:, 1:], LOW, low))
    store(cache.pool, low, page, place, tokens, errors=cache.errors, path=cache.path)

    rest = torch.arange(budget.block, held, device=device).expand(len(rows), -1)
    bookkeeping.copy_tokens(
        cache.pool, high, locate(table, rest, HIGH, high), locate(table, rest - budget.block, HIGH, high)
    )
    pg.resize(cache.tables, rows, before + block - block.flip(0), path=cache.path)
