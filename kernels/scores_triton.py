# mypy: disable-error-code="no-untyped-def"
"""The decode step's score update as one Triton launch over rows and blocks of tokens."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from leankv.kernels.bookkeeping import LEAN
from leankv.kernels.bookkeeping_triton import fields, load_position, page_of, queries_before, score_at, views
from leankv.kernels.decode_rules import StepInputs
from leankv.kernels.pages import PageTables
from leankv.serving.pages import PageLayout

BLOCK_TOKENS = 256


def update_scores(
    pool: Tensor,
    tables: PageTables,
    layouts: tuple[PageLayout, ...],
    step: StepInputs,
    gains: Tensor,
    score_window: int,
) -> None:
    """See `scores.update_scores`."""
    lean = layouts[0].bookkeeping == LEAN
    low = layouts[1] if len(layouts) > 1 else None
    grid = (len(step.rows), triton.cdiv(gains.shape[1], BLOCK_TOKENS))
    if 0 in grid:
        return
    for tier, layout in enumerate((layouts[0], low)):
        tokens, scores, positions = fields(layout)
        if layout is None:
            continue
        update_kernel[grid](
            *views(pool, lean), tables.table, tables.counts, step.rows, step.position, step.prompt, gains,
            gains.stride(0), TIER=tier, SCORE_WINDOW=score_window, MAX_PAGES=tables.max_pages,
            PAGE_BYTES=pool.shape[1], IS_LEAN=lean, TOKENS=tokens, SCORES=scores, POSITIONS=positions,
            BLOCK=BLOCK_TOKENS,
        )  # fmt: skip


@triton.jit
def update_kernel(
    scores, positions, table, counts, rows, position, prompt, gains, gain_stride,
    TIER: tl.constexpr, SCORE_WINDOW: tl.constexpr, MAX_PAGES: tl.constexpr, PAGE_BYTES: tl.constexpr,
    IS_LEAN: tl.constexpr, TOKENS: tl.constexpr, SCORES: tl.constexpr, POSITIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0)
    listed = tl.load(rows + index)
    row = tl.maximum(listed, 0).to(tl.int64)
    high = tl.load(counts + row * 2)
    count = tl.where(listed >= 0, tl.load(counts + row * 2 + TIER), 0)
    first = tl.program_id(1) * BLOCK
    # The grid covers the longest request there may be; most of its programs have no tokens.
    if first < count:
        token = first + tl.arange(0, BLOCK)
        there = token < count
        page, place = page_of(table, row, token, TIER, TOKENS, MAX_PAGES, there)
        entry = token + high * TIER
        gain = tl.load(gains + index.to(tl.int64) * gain_stride + entry, mask=there, other=0.0)
        at = score_at(scores, page, place, SCORES, PAGE_BYTES, IS_LEAN)
        score = tl.load(at, mask=there, other=0.0).to(tl.float32)
        if IS_LEAN:
            when = load_position(positions, page, place, there, POSITIONS, PAGE_BYTES, IS_LEAN)
            seen = queries_before(when, tl.load(prompt + index), tl.load(position + index) + 1, SCORE_WINDOW)
            gain = tl.div_rn(gain - score, tl.maximum(seen, 1.0))
        tl.store(at, (score + gain).to(scores.dtype.element_ty), mask=there)
