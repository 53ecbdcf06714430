# mypy: disable-error-code="no-untyped-def"
"""Recompression as Triton kernels: every launch's grid depends on the number of rows alone, and nothing is read back.

Significance and positions are gathered into a workspace, classified there, and turned into lists of moves, a program a
row; then pages are taken, tokens moved by the lists, and emptied pages freed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from leankv.kernels import classify_triton
from leankv.kernels.bookkeeping import LEAN
from leankv.kernels.bookkeeping_triton import fields, load_position, page_of, queries_before, score_at, views
from leankv.kernels.decode_rules import StepInputs
from leankv.kernels.move_triton import TOKENS_AT_ONCE, copy_tokens, requantize_tokens
from leankv.kernels.pages import PageTables, last_met, resize, resize_if_possible
from leankv.serving.pages import PageLayout
from leankv.serving.policies.budgets import MassTiers

BLOCK = 512
BYTES_A_TOKEN = 13
"""Of the workspace: significance, position, tier and a place in a list."""


@dataclass(frozen=True, eq=False)
class RecompressWorkspace:
    """Room for `rows` rows of up to `width` tokens, reused by every call.

    significance float32, positions int32, tiers int8 and demoted int32 [rows, width]; once tiers are known, the first
    two hold the lists of sources and targets. tokens float32 [rows, 2, TOKENS_AT_ONCE, head_dim].
    """

    significance: Tensor
    positions: Tensor
    tiers: Tensor
    demoted: Tensor
    tokens: Tensor

    @property
    def rows(self) -> int:
        return self.tiers.shape[0]

    @classmethod
    def empty(cls, rows: int, width: int, head_dim: int, device: torch.device | str) -> RecompressWorkspace:
        def empty(dtype: torch.dtype) -> Tensor:
            return torch.empty(rows, width, dtype=dtype, device=device)

        tokens = torch.empty(rows, 2, TOKENS_AT_ONCE, head_dim, device=device)
        return cls(empty(torch.float32), empty(torch.int32), empty(torch.int8), empty(torch.int32), tokens)


def workspace_bytes(rows: int, width: int, head_dim: int) -> int:
    """Bytes of a workspace for `rows` rows of up to `width` tokens."""
    return rows * (width * BYTES_A_TOKEN + 8 * TOKENS_AT_ONCE * head_dim)


def recompress(
    pool: Tensor,
    tables: PageTables,
    layouts: tuple[PageLayout, PageLayout],
    budget: MassTiers,
    step: StepInputs,
    score_window: int,
    errors: Tensor,
    workspace: RecompressWorkspace,
) -> None:
    """See `recompress.recompress`; at most `workspace.rows` rows, none of which holds more than its width."""
    n, width = len(step.rows), workspace.tiers.shape[1]
    assert n <= workspace.rows
    if not n:
        return
    held, moves = step.rows.new_empty(n), step.rows.new_empty(6, n)
    wanted, grown = step.rows.new_empty(n, 2), step.rows.new_empty(n, 2)
    _read(pool, tables, layouts, step, score_window, workspace, held)
    classify_triton.mass_kernel[(n,)](
        workspace.significance, workspace.positions, step.position, workspace.tiers, held, width,
        PRUNE=budget.prune, LOW_SHARE=budget.low, WINDOW=budget.window, RAGGED=True, BLOCK=classify_triton.BLOCK,
    )  # fmt: skip
    lists = workspace.significance.view(torch.int32), workspace.positions
    list_kernel[(n,)](
        workspace.tiers, tables.counts, step.rows, *lists, workspace.demoted, wanted, grown, moves, width, n,
        BLOCK=BLOCK,
    )  # fmt: skip
    resize_if_possible(tables, step.rows, grown, path="triton")
    rows = torch.where(last_met(tables), step.rows, -1)
    high_first, high_moves, low_first, low_moves, low_kept, demoted = moves
    copy_tokens(pool, tables, layouts[1], rows, 1, lists, low_first, low_moves)
    requantize_tokens(
        pool, tables, layouts, rows, workspace.demoted, low_kept, demoted, workspace.tokens, errors
    )  # fmt: skip
    copy_tokens(pool, tables, layouts[0], rows, 0, lists, high_first, high_moves)
    resize(tables, rows, wanted, path="triton")


def _read(
    pool: Tensor,
    tables: PageTables,
    layouts: tuple[PageLayout, PageLayout],
    step: StepInputs,
    score_window: int,
    workspace: RecompressWorkspace,
    held: Tensor,
) -> None:
    lean, width = layouts[0].bookkeeping == LEAN, workspace.tiers.shape[1]
    tokens, scores, positions = fields(layouts[0])
    low_tokens, low_scores, low_positions = fields(layouts[1])
    read_kernel[(len(step.rows), triton.cdiv(width, BLOCK))](
        *views(pool, lean), tables.table, tables.counts, step.rows, step.position, step.prompt,
        workspace.significance, workspace.positions, held, width, SCORE_WINDOW=score_window,
        MAX_PAGES=tables.max_pages, PAGE_BYTES=pool.shape[1], IS_LEAN=lean, TOKENS=tokens, SCORES=scores,
        POSITIONS=positions, LOW_TOKENS=low_tokens, LOW_SCORES=low_scores, LOW_POSITIONS=low_positions, BLOCK=BLOCK,
    )  # fmt: skip


@triton.jit
def _read_tier(
    scores, positions, table, row, first, count, prompt, upto, significance, found,
    TIER: tl.constexpr, SCORE_WINDOW: tl.constexpr, MAX_PAGES: tl.constexpr, PAGE_BYTES: tl.constexpr,
    IS_LEAN: tl.constexpr, TOKENS: tl.constexpr, SCORES: tl.constexpr, POSITIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = first + tl.arange(0, BLOCK)
    there = token < count
    page, place = page_of(table, row, token, TIER, TOKENS, MAX_PAGES, there)
    when = load_position(positions, page, place, there, POSITIONS, PAGE_BYTES, IS_LEAN)
    score = tl.load(score_at(scores, page, place, SCORES, PAGE_BYTES, IS_LEAN), mask=there, other=0.0).to(tl.float32)
    if not IS_LEAN:
        score = tl.div_rn(score, tl.maximum(queries_before(when, prompt, upto, SCORE_WINDOW), 1.0))
    tl.store(significance + token, score, mask=there)
    tl.store(found + token, when, mask=there)


@triton.jit
def read_kernel(
    scores, positions, table, counts, rows, position, prompt, significance, found, held, width,
    SCORE_WINDOW: tl.constexpr, MAX_PAGES: tl.constexpr, PAGE_BYTES: tl.constexpr, IS_LEAN: tl.constexpr,
    TOKENS: tl.constexpr, SCORES: tl.constexpr, POSITIONS: tl.constexpr, LOW_TOKENS: tl.constexpr,
    LOW_SCORES: tl.constexpr, LOW_POSITIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows, blocks of tokens): significance and position of each token held, the high tier's before the low's."""
    index = tl.program_id(0)
    listed = tl.load(rows + index)
    row = tl.maximum(listed, 0).to(tl.int64)
    high = tl.where(listed >= 0, tl.load(counts + row * 2), 0)
    low = tl.where(listed >= 0, tl.load(counts + row * 2 + 1), 0)
    first = tl.program_id(1) * BLOCK
    if first == 0:
        tl.store(held + index, high + low)
    upto = tl.load(position + index)
    of_prompt = tl.load(prompt + index)
    at = index.to(tl.int64) * width
    if first < high:
        _read_tier(
            scores, positions, table, row, first, high, of_prompt, upto, significance + at, found + at,
            0, SCORE_WINDOW, MAX_PAGES, PAGE_BYTES, IS_LEAN, TOKENS, SCORES, POSITIONS, BLOCK,
        )  # fmt: skip
    if first < low:
        _read_tier(
            scores, positions, table, row, first, low, of_prompt, upto, significance + at + high, found + at + high,
            1, SCORE_WINDOW, MAX_PAGES, PAGE_BYTES, IS_LEAN, LOW_TOKENS, LOW_SCORES, LOW_POSITIONS, BLOCK,
        )  # fmt: skip


@triton.jit
def _compaction(tiers, count, kept, sources, targets, ANY_TIER: tl.constexpr, BLOCK: tl.constexpr):
    """List the survivors beyond the first `kept` places and the holes before them; returns how many there are.

    A token survives in tier HIGH, or with ANY_TIER in whatever tier but PRUNED.
    """
    moved = tl.full([], 0, tl.int32)
    holes = tl.full([], 0, tl.int32)
    for first in range(0, count, BLOCK):
        token = first + tl.arange(0, BLOCK)
        there = token < count
        tier = tl.load(tiers + token, mask=there, other=2)
        stays = (tier != 2) if ANY_TIER else (tier == 0)
        mover = (stays & there & (token >= kept)).to(tl.int32)
        hole = ((~stays) & there & (token < kept)).to(tl.int32)
        tl.store(sources + moved + tl.cumsum(mover, 0) - 1, token, mask=mover == 1)
        tl.store(targets + holes + tl.cumsum(hole, 0) - 1, token, mask=hole == 1)
        moved += tl.sum(mover, 0)
        holes += tl.sum(hole, 0)
    return moved


@triton.jit(do_not_specialize=["number"])
def list_kernel(
    tiers, counts, rows, sources, targets, demoted, wanted, grown, moves, width, number, BLOCK: tl.constexpr
):
    """Grid (rows): tokens a tier in the end and at most on the way, and what moves where, as lists of token numbers.

    moves [6, rows]: where the high tier's list starts and its length, the same of the low tier's, the low place of the
    first demoted token, and how many are demoted.
    """
    index = tl.program_id(0)
    listed = tl.load(rows + index)
    row = tl.maximum(listed, 0).to(tl.int64)
    high = tl.where(listed >= 0, tl.load(counts + row * 2), 0)
    low = tl.where(listed >= 0, tl.load(counts + row * 2 + 1), 0)
    at = index.to(tl.int64) * width
    kept_high = tl.full([], 0, tl.int32)
    kept_low = tl.full([], 0, tl.int32)
    lowered = tl.full([], 0, tl.int32)
    for first in range(0, high, BLOCK):
        token = first + tl.arange(0, BLOCK)
        tier = tl.load(tiers + at + token, mask=token < high, other=2)
        falls = (tier == 1).to(tl.int32)
        tl.store(demoted + at + lowered + tl.cumsum(falls, 0) - 1, token, mask=falls == 1)
        lowered += tl.sum(falls, 0)
        kept_high += tl.sum((tier == 0).to(tl.int32), 0)
    for first in range(0, low, BLOCK):
        token = first + tl.arange(0, BLOCK)
        tier = tl.load(tiers + at + high + token, mask=token < low, other=2)
        kept_low += tl.sum((tier != 2).to(tl.int32), 0)
    high_moves = _compaction(tiers + at, high, kept_high, sources + at, targets + at, False, BLOCK)
    first_low = at + high
    low_moves = _compaction(
        tiers + first_low, low, kept_low, sources + first_low, targets + first_low, True, BLOCK
    )  # fmt: skip
    tl.store(wanted + index * 2, kept_high)
    tl.store(wanted + index * 2 + 1, kept_low + lowered)
    tl.store(grown + index * 2, tl.maximum(kept_high, high))
    tl.store(grown + index * 2 + 1, tl.maximum(kept_low + lowered, low))
    tl.store(moves + index, 0)
    tl.store(moves + number + index, high_moves)
    tl.store(moves + 2 * number + index, high)
    tl.store(moves + 3 * number + index, low_moves)
    tl.store(moves + 4 * number + index, kept_low)
    tl.store(moves + 5 * number + index, lowered)
