# mypy: disable-error-code="no-untyped-def"
"""Scores and positions of cached tokens as Triton reads them: device functions shared by the decode step's kernels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from leankv.kernels.bookkeeping import LEAN
from leankv.serving.pages import PageLayout


def views(pool: Tensor, lean: bool) -> tuple[Tensor, Tensor]:
    """The pool as scores and as positions are stored in it."""
    if lean:
        return pool.view(torch.float16), pool
    return pool.view(torch.float32), pool.view(torch.int32)


def fields(layout: PageLayout | None) -> tuple[int, int, int]:
    """Tokens a page, and where scores and positions start in it, in elements of `views`; 1, 0, 0 for no layout."""
    if layout is None:
        return 1, 0, 0
    lean = layout.bookkeeping == LEAN
    scores, positions = layout.offset("scores"), layout.offset("positions")
    return layout.tokens, scores // (2 if lean else 4), positions if lean else positions // 4


@triton.jit
def page_of(table, row, token, TIER: tl.constexpr, TOKENS: tl.constexpr, MAX_PAGES: tl.constexpr, there):
    """Page int64 and place of a token number of a tier."""
    column = token // TOKENS
    if TIER == 1:
        column = MAX_PAGES - 1 - column
    page = tl.load(table + row * MAX_PAGES + column, mask=there, other=0)
    return page.to(tl.int64), token % TOKENS


@triton.jit
def load_position(positions, page, place, there, FIRST: tl.constexpr, PAGE_BYTES: tl.constexpr, IS_LEAN: tl.constexpr):
    if IS_LEAN:
        at = positions + page * PAGE_BYTES + FIRST + 3 * place
        low = tl.load(at, mask=there, other=0).to(tl.int32)
        middle = tl.load(at + 1, mask=there, other=0).to(tl.int32)
        high = tl.load(at + 2, mask=there, other=0).to(tl.int32)
        position = low | (middle << 8) | (high << 16)
    else:
        position = tl.load(positions + page * (PAGE_BYTES // 4) + FIRST + place, mask=there, other=0)
    return position


@triton.jit
def score_at(scores, page, place, FIRST: tl.constexpr, PAGE_BYTES: tl.constexpr, IS_LEAN: tl.constexpr):
    """Address of a token's score."""
    return scores + page * (PAGE_BYTES // (2 if IS_LEAN else 4)) + FIRST + place


@triton.jit
def queries_before(position, prompt, upto, SCORE_WINDOW: tl.constexpr):
    """See `bookkeeping.queries_before`; float32."""
    of_prompt = tl.where(position < prompt, tl.minimum(prompt - position, SCORE_WINDOW), 0)
    return (of_prompt + upto - tl.maximum(position, prompt)).to(tl.float32)
