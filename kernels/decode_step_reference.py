"""The decode step's decision, one head and one token at a time: the form to read."""

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


def plan(
    pool: Tensor, tables: PageTables, layouts: tuple[PageLayout, ...], rule: DecodeRule, step: StepInputs
) -> DecodePlan:
    """See `decode_step.plan_step`."""
    results = [_plan_row(pool, tables, layouts, rule, step, index) for index in range(step.rows.shape[0])]
    case, place, spare, wanted = zip(*results, strict=True)
    return DecodePlan(*(torch.tensor(column, dtype=torch.int32) for column in (case, place, spare, wanted)))


def _plan_row(
    pool: Tensor, tables: PageTables, layouts: tuple[PageLayout, ...], rule: DecodeRule, step: StepInputs, index: int
) -> tuple[int, int, int, tuple[int, int]]:
    row, p, capacity = (int(x[index]) for x in (step.rows, step.position, step.capacity))
    high, low = (int(count) for count in tables.counts[max(row, 0)])
    appended = (APPEND, high, -1, (high + 1, low))
    if rule.kind == "append" or row < 0:
        return appended
    if rule.kind == "ring":
        turn = rule.sink + (p - rule.sink) % max(capacity - rule.sink, 1)
        return (OVERWRITE, turn, -1, (high, low)) if high >= capacity else appended

    s_l, victim = _least(pool, tables, layouts[0], 0, rule, step, index)
    if victim < 0:
        return appended
    if rule.kind == "heavy":
        return (OVERWRITE, victim, -1, (high, low)) if high >= capacity else appended

    s_r, spare = _least(pool, tables, layouts[1], 1, rule, step, index)
    prune_below = float(step.alpha_low[index] / step.position[index])
    low_below = float(step.alpha_high[index] / step.position[index])
    if s_l < prune_below and s_l < s_r:
        return OVERWRITE, victim, -1, (high, low)
    if s_l < low_below and s_r < prune_below:
        return DEMOTE_OVER, victim, spare, (high, low)
    if s_l < low_below:
        return DEMOTE, victim, low, (high, low + 1)
    return appended


def _least(
    pool: Tensor, tables: PageTables, layout: PageLayout, tier: int, rule: DecodeRule, step: StepInputs, index: int
) -> tuple[float, int]:
    """Least key and its token number in a tier, ties to the older token."""
    row, p, prompt, recent = (int(x[index]) for x in (step.rows, step.position, step.prompt, step.recent))
    best, best_position, found = float("inf"), -1, -1
    for token in range(int(tables.counts[row, tier])):
        page = tables.table[row, token // layout.tokens if tier == 0 else -1 - token // layout.tokens].long().view(1, 1)
        place = token % layout.tokens
        position = int(bookkeeping.read_positions(pool, page, layout)[0, place])
        if tier == 0 and position > p - recent:
            continue
        stored = bookkeeping.read_scores(pool, page, layout)[0, place]
        seen = max(0, min(prompt - position, rule.score_window)) + p - max(position, prompt)
        mean = stored if layout.bookkeeping == bookkeeping.LEAN else stored / seen
        total = stored * seen if layout.bookkeeping == bookkeeping.LEAN else stored
        key = float(total if rule.kind == "heavy" else mean)
        if key < best or (key == best and position < best_position):
            best, best_position, found = key, position, token
    return best, found
