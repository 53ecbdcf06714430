# mypy: disable-error-code="no-untyped-def"
"""The decode step's decision as one Triton launch: a program a row, which reads its scores and positions once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from leankv.kernels.bookkeeping import LEAN
from leankv.kernels.bookkeeping_triton import fields, load_position, page_of, queries_before, score_at, views
from leankv.kernels.decode_rules import DecodePlan, DecodeRule, StepInputs
from leankv.kernels.pages import PageTables
from leankv.serving.pages import PageLayout

BLOCK_TOKENS = 512
NUM_WARPS = 8


def plan(
    pool: Tensor, tables: PageTables, layouts: tuple[PageLayout, ...], rule: DecodeRule, step: StepInputs
) -> DecodePlan:
    """See `decode_step.plan_step`."""
    lean = layouts[0].bookkeeping == LEAN
    tokens, scores, positions = fields(layouts[0])
    low_tokens, low_scores, low_positions = fields(layouts[1] if len(layouts) > 1 else None)
    case, place, spare = (torch.empty_like(step.rows) for _ in range(3))
    wanted = step.rows.new_empty(len(step.rows), 2)
    if not len(step.rows):
        return DecodePlan(case, place, spare, wanted)
    plan_kernel[(len(step.rows),)](
        *views(pool, lean), tables.table, tables.counts, step.rows, step.position, step.prompt, step.alpha_low,
        step.alpha_high, step.capacity, step.recent, case, place, spare, wanted,
        KIND=rule.kind, SINK=rule.sink, SCORE_WINDOW=rule.score_window, MAX_PAGES=tables.max_pages,
        PAGE_BYTES=pool.shape[1], IS_LEAN=lean, TOKENS=tokens, SCORES=scores, POSITIONS=positions,
        LOW_TOKENS=low_tokens, LOW_SCORES=low_scores, LOW_POSITIONS=low_positions, BLOCK=BLOCK_TOKENS,
        num_warps=NUM_WARPS,
    )  # fmt: skip
    return DecodePlan(case, place, spare, wanted)


@triton.jit
def _least(
    scores, positions, table, row, count, newest, prompt, p,
    TIER: tl.constexpr, HEAVY: tl.constexpr, SCORE_WINDOW: tl.constexpr, MAX_PAGES: tl.constexpr,
    PAGE_BYTES: tl.constexpr, IS_LEAN: tl.constexpr, TOKENS: tl.constexpr, SCORES: tl.constexpr,
    POSITIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Least key of a tier's tokens not newer than `newest`, and its token number (-1: none), ties to the older token.

    A key is not negative, so its bits order as it does; position in the low half settles ties.
    """
    best = tl.full([], 0x7F800000, tl.int64) << 32
    found = tl.full([], -1, tl.int32)
    for first in range(0, count, BLOCK):
        token = first + tl.arange(0, BLOCK)
        there = token < count
        page, place = page_of(table, row, token, TIER, TOKENS, MAX_PAGES, there)
        position = load_position(positions, page, place, there, POSITIONS, PAGE_BYTES, IS_LEAN)
        key = tl.load(score_at(scores, page, place, SCORES, PAGE_BYTES, IS_LEAN), mask=there, other=0.0).to(tl.float32)
        seen = tl.maximum(queries_before(position, prompt, p, SCORE_WINDOW), 1.0)
        if HEAVY and IS_LEAN:
            key = key * seen
        if (not HEAVY) and (not IS_LEAN):
            key = tl.div_rn(key, seen)
        ordered = (key.to(tl.int32, bitcast=True).to(tl.int64) << 32) | position.to(tl.int64)
        ordered = tl.where(there & (position <= newest), ordered, 0x7FFFFFFFFFFFFFFF)
        least = tl.min(ordered, 0)
        number = tl.min(tl.where(ordered == least, token, 0x7FFFFFFF), 0)
        found = tl.where(least < best, number, found)
        best = tl.minimum(best, least)
    return (best >> 32).to(tl.int32).to(tl.float32, bitcast=True), found


@triton.jit
def plan_kernel(
    scores, positions, table, counts, rows, position, prompt, alpha_low, alpha_high, capacity, recent,
    case_out, place_out, spare_out, wanted_out,
    KIND: tl.constexpr, SINK: tl.constexpr, SCORE_WINDOW: tl.constexpr, MAX_PAGES: tl.constexpr,
    PAGE_BYTES: tl.constexpr, IS_LEAN: tl.constexpr, TOKENS: tl.constexpr, SCORES: tl.constexpr,
    POSITIONS: tl.constexpr, LOW_TOKENS: tl.constexpr, LOW_SCORES: tl.constexpr, LOW_POSITIONS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0)
    listed = tl.load(rows + index)
    row = tl.maximum(listed, 0).to(tl.int64)
    # Padding behaves as an empty row: it appends, and the page manager leaves it out.
    high = tl.where(listed >= 0, tl.load(counts + row * 2), 0)
    low = tl.where(listed >= 0, tl.load(counts + row * 2 + 1), 0)
    p = tl.load(position + index)
    case = 0
    place = high
    spare = -1
    if KIND == "ring":
        room = tl.load(capacity + index)
        full = (high >= room) & (listed >= 0)
        case = tl.where(full, 1, 0)
        place = tl.where(full, SINK + (p - SINK) % tl.maximum(room - SINK, 1), high)
    if KIND == "heavy" or KIND == "thresholds":
        first = tl.load(prompt + index)
        newest = p - tl.load(recent + index)
        least, victim = _least(
            scores, positions, table, row, high, newest, first, p,
            0, KIND == "heavy", SCORE_WINDOW, MAX_PAGES, PAGE_BYTES, IS_LEAN, TOKENS, SCORES, POSITIONS, BLOCK,
        )  # fmt: skip
        if KIND == "heavy":
            case = tl.where((high >= tl.load(capacity + index)) & (victim >= 0), 1, 0)
        else:
            spare_least, spare = _least(
                scores, positions, table, row, low, p, first, p,
                1, False, SCORE_WINDOW, MAX_PAGES, PAGE_BYTES, IS_LEAN, LOW_TOKENS, LOW_SCORES, LOW_POSITIONS, BLOCK,
            )  # fmt: skip
            # A GPU's plain division is approximate; decisions and ties must be those of the other forms.
            prune_below = tl.div_rn(tl.load(alpha_low + index), p.to(tl.float32))
            low_below = tl.div_rn(tl.load(alpha_high + index), p.to(tl.float32))
            case = tl.where(least < low_below, tl.where(spare_least < prune_below, 2, 3), 0)
            case = tl.where((least < prune_below) & (least < spare_least), 1, case)
            case = tl.where(victim >= 0, case, 0)
            spare = tl.where(case == 2, spare, tl.where(case == 3, low, -1))
        place = tl.where(case == 0, high, victim)
    tl.store(case_out + index, case)
    tl.store(place_out + index, place)
    tl.store(spare_out + index, spare)
    tl.store(wanted_out + index * 2, high + tl.where(case == 0, 1, 0))
    tl.store(wanted_out + index * 2 + 1, low + tl.where(case == 3, 1, 0))
