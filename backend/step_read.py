"""What the host reads of a step: chosen tokens, pages by slot and the cache's faults, in one copy that it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leankv.backend.step_log import SlotCounts
from leankv.kernels import pages as pg

if TYPE_CHECKING:
    from leankv.backend.cache import KVCache


class CacheFault(RuntimeError):
    """The cache cannot go on: its contents are wrong from this step on."""


@dataclass(frozen=True)
class StepRead:
    """tokens: the likeliest by row of the step's logits. counts: what each slot holds after the step."""

    tokens: Sequence[int]
    counts: SlotCounts


def report(cache: KVCache, tokens: Tensor) -> Tensor:
    """int32 on the device: the cache's three faults, pages and tokens by slot and tier, then `tokens` (int [rows])."""
    tables = cache.tables
    held = pg.pages_held(tables.counts, tables.tokens_per_page)
    by_slot = torch.stack([held, tables.counts]).view(2, tables.slots, -1, 2).sum(2, dtype=torch.int32)
    return torch.cat([cache.faults(), by_slot.flatten(), tokens.int()])


def read(report: Tensor, slots: int) -> StepRead:
    """Copy a report to the host, waiting for the step. Raises CacheFault."""
    short, over, bad, *rest = _on_host(report)
    if short:
        raise CacheFault(f"the pool ran {short} pages short in a step: the scheduler's reserve does not hold")
    if over:
        raise CacheFault(f"a head needed {over} pages more than its page table has: the bound does not hold")
    if bad:
        raise CacheFault(f"{bad} rows of keys or values were not finite or beyond float16's range")
    pairs = list(zip(rest[0 : 4 * slots : 2], rest[1 : 4 * slots : 2], strict=True))
    return StepRead(rest[4 * slots :], SlotCounts(pairs[:slots], pairs[slots:]))


def _on_host(report: Tensor) -> list[int]:
    if not report.is_cuda:
        return list(report.tolist())
    pinned = torch.empty(report.shape, dtype=report.dtype, pin_memory=True)
    pinned.copy_(report, non_blocking=True)
    torch.cuda.current_stream().synchronize()
    return list(pinned.tolist())
