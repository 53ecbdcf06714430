"""The decode step's decision, vectorised over rows and tokens: the form that the engine uses on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leankv.kernels import bookkeeping
from leankv.kernels.decode_rules import (
    APPEND,
    DEMOTE,
    DEMOTE_OVER,
    OVERWRITE,
    DecodePlan,
    DecodeRule,
    StepInputs,
)

if TYPE_CHECKING:
    from leankv.kernels.pages import PageTables
    from leankv.serving.pages import PageLayout

NO_ONE = torch.iinfo(torch.int32).max


def plan(
    pool: Tensor, tables: PageTables, layouts: tuple[PageLayout, ...], rule: DecodeRule, step: StepInputs
) -> DecodePlan:
    """See `decode_step.plan_step`."""
    counts = tables.counts[step.rows.clamp(min=0)]
    if rule.kind == "append":
        return _plan(torch.zeros_like(step.rows), counts[:, 0], counts, counts)
    if rule.kind == "ring":
        turn = rule.sink + (step.position - rule.sink) % (step.capacity - rule.sink).clamp(min=1)
        full = counts[:, 0] >= step.capacity
        return _plan(full.int() * OVERWRITE, torch.where(full, turn, counts[:, 0]), counts, counts)
    least, victim = _least(pool, tables, layouts[0], 0, rule, step, counts)
    if rule.kind == "heavy":
        gone = (counts[:, 0] >= step.capacity) & (victim >= 0)
        return _plan(gone.int() * OVERWRITE, torch.where(gone, victim, counts[:, 0]), counts, counts)
    spare_least, spare = _least(pool, tables, layouts[1], 1, rule, step, counts)
    low, high = step.alpha_low / step.position, step.alpha_high / step.position
    demote = torch.where(spare_least < low, DEMOTE_OVER, DEMOTE)
    case = torch.where(least < high, demote, APPEND)
    case = torch.where((least < low) & (least < spare_least), OVERWRITE, case)
    case = torch.where(victim >= 0, case, APPEND)
    return _plan(case, torch.where(case == APPEND, counts[:, 0], victim), counts, torch.stack([counts[:, 0], spare], 1))


def _plan(case: Tensor, place: Tensor, counts: Tensor, spares: Tensor) -> DecodePlan:
    """Plan from the cases, the new token's place, and in column 1 of `spares` the low token R."""
    spare = torch.where(case == DEMOTE_OVER, spares[:, 1], torch.where(case == DEMOTE, counts[:, 1], -1))
    grow = torch.stack([case == APPEND, case == DEMOTE], 1)
    return DecodePlan(case.int(), place.int(), spare.int(), (counts + grow).int())


def _least(
    pool: Tensor,
    tables: PageTables,
    layout: PageLayout,
    tier: int,
    rule: DecodeRule,
    step: StepInputs,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Least key and the token number that has it, of tokens that may go; infinity and -1 where there is none."""
    pages = int((counts[:, tier].max() + layout.tokens - 1) // layout.tokens) if len(counts) else 0
    if pages == 0:
        nobody = torch.full_like(step.rows, -1)
        return torch.full(nobody.shape, torch.inf, device=pool.device), nobody
    held = bookkeeping.tier_pages(tables.table[step.rows.clamp(min=0)], tier, pages)
    positions = bookkeeping.read_positions(pool, held, layout)
    keys = bookkeeping.read_scores(pool, held, layout)
    if (rule.kind == "heavy") == (layout.bookkeeping == bookkeeping.LEAN):
        seen = bookkeeping.queries_before(positions, step.prompt[:, None], step.position[:, None], rule.score_window)
        keys = keys * seen if rule.kind == "heavy" else keys / seen
    free = torch.arange(positions.shape[1], device=pool.device) < counts[:, tier, None]
    if tier == 0:
        free &= positions <= (step.position - step.recent)[:, None]
    keys = torch.where(free, keys, torch.inf)
    least = keys.amin(1)
    oldest = torch.where(free & (keys == least[:, None]), positions, NO_ONE).min(1)
    return least, torch.where(oldest.values < NO_ONE, oldest.indices, -1)
