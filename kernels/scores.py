"""The decode step's score update: what the new query gave to each cached token is added to the token's score."""

from __future__ import annotations

import torch
from torch import Tensor

from leankv.kernels import bookkeeping
from leankv.kernels.decode_rules import StepInputs
from leankv.kernels.pages import PageTables
from leankv.kernels.paths import Path, path_for
from leankv.serving.pages import PageLayout


def update_scores(
    pool: Tensor,
    tables: PageTables,
    layouts: tuple[PageLayout, ...],
    step: StepInputs,
    gains: Tensor,
    score_window: int = 64,
    path: Path | None = None,
) -> None:
    """Add `gains` float32 [n, capacity] to the scores of the tokens that the rows `step.rows` hold, after the query.

    Entry t of a row belongs to its token t of the high tier, entry n_high + t to its token t of the low tier, as decode
    attention returns them. A sum grows by the gain; a running mean of s queries by (gain - mean)/s.
    """
    assert gains.shape[0] == step.rows.shape[0]
    chosen = path_for(pool, path)
    if chosen == "triton":
        from leankv.kernels import scores_triton

        scores_triton.update_scores(pool, tables, layouts, step, gains, score_window)
        return
    for tier, layout in enumerate(layouts):
        form = _reference if chosen == "reference" else _vectorised
        form(pool, tables, layout, tier, step, gains, score_window)


def _vectorised(
    pool: Tensor, tables: PageTables, layout: PageLayout, tier: int, step: StepInputs, gains: Tensor, score_window: int
) -> None:
    rows = step.rows.clamp(min=0)
    counts = tables.counts[rows] * (step.rows >= 0)[:, None]
    pages = int((counts[:, tier].max() + layout.tokens - 1) // layout.tokens) if len(counts) else 0
    if pages == 0:
        return
    token = torch.arange(pages * layout.tokens, device=pool.device)
    held = token < counts[:, tier, None]
    entry = (token + tier * counts[:, :1]).clamp(max=gains.shape[1] - 1)
    gain = torch.where(held, torch.gather(gains, 1, entry), 0)
    on = bookkeeping.tier_pages(tables.table[rows], tier, pages)
    if layout.bookkeeping == bookkeeping.LEAN:
        positions = bookkeeping.read_positions(pool, on, layout)
        after = (step.position + 1)[:, None]
        seen = bookkeeping.queries_before(positions, step.prompt[:, None], after, score_window)
        gain = torch.where(held, (gain - bookkeeping.read_scores(pool, on, layout)) / seen, 0)
    bookkeeping.add_to_scores(pool, on, layout, gain)


def _reference(
    pool: Tensor, tables: PageTables, layout: PageLayout, tier: int, step: StepInputs, gains: Tensor, score_window: int
) -> None:
    for index, row in enumerate(step.rows.tolist()):
        if row < 0:
            continue
        high, held = int(tables.counts[row, 0]), int(tables.counts[row, tier])
        for token in range(held):
            gain = gains[index, token + tier * high]
            number = token // layout.tokens
            page = tables.table[row, number if tier == 0 else -1 - number].long().view(1, 1)
            place = token % layout.tokens
            if layout.bookkeeping == bookkeeping.LEAN:
                position = bookkeeping.read_positions(pool, page, layout)[:, place]
                seen = bookkeeping.queries_before(position, step.prompt[index], step.position[index] + 1, score_window)
                gain = (gain - bookkeeping.read_scores(pool, page, layout)[0, place]) / seen
            change = torch.zeros(1, layout.tokens)
            change[0, place] = gain
            bookkeeping.add_to_scores(pool, page, layout, change)
