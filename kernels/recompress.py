"""Recompression while decoding: heads are classified again by mass, compacted, and emptied pages freed.

The published five cases never empty a page. Here, every n steps, a head's least significant tokens are pruned or
requantized into the low tier; the survivors at a tier's end fill its holes, which needs no scratch memory since sources
and targets are disjoint; then both tiers shrink. A low token stays low: bits given up cannot be had back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leankv.kernels import bookkeeping
from leankv.kernels.classify import HIGH, LOW, PRUNED, by_mass
from leankv.kernels.decode_rules import StepInputs
from leankv.kernels.layout import locate
from leankv.kernels.pages import PageTables, last_met, resize, resize_if_possible
from leankv.kernels.paths import Path, path_for
from leankv.kernels.store import gather, store
from leankv.serving.pages import PageLayout
from leankv.serving.policies.budgets import MassTiers

if TYPE_CHECKING:
    from leankv.kernels.recompress_triton import RecompressWorkspace


def recompress(
    pool: Tensor,
    tables: PageTables,
    layouts: tuple[PageLayout, PageLayout],
    budget: MassTiers,
    step: StepInputs,
    score_window: int = 64,
    errors: Tensor | None = None,
    path: Path | None = None,
    workspace: RecompressWorkspace | None = None,
) -> None:
    """Classify the rows `step.rows` again at length `step.position` (tokens of the text so far), by `budget`.

    The low tier grows before the high one shrinks; where the free pages do not cover that, the call changes nothing and
    records no shortage, since the cache is whole without it.

    The Triton form needs `errors` and a `workspace`. It neither waits for the device nor depends on contents in what it
    launches and allocates, so a CUDA graph can hold it.
    """
    if path_for(pool, path) == "triton":
        from leankv.kernels import recompress_triton

        assert errors is not None and workspace is not None, "the Triton form writes to both"
        recompress_triton.recompress(pool, tables, layouts, budget, step, score_window, errors, workspace)
        return
    rows = step.rows[step.rows >= 0].long()
    step = _live(step)
    counts = tables.counts[rows]
    significance, positions = _read(pool, tables, layouts, step, counts, score_window)
    first_low = _width(counts, 0, layouts[0])
    tiers = by_mass(significance, positions, step.position[:, None], budget.prune, budget.low, budget.window)
    high, low = tiers[:, :first_low], tiers[:, first_low:]
    stays_low = low != PRUNED
    demoted = high == LOW
    kept = torch.stack([(high == HIGH).sum(1), stays_low.sum(1)], 1).int()
    wanted = kept + torch.stack([torch.zeros_like(kept[:, 0]), demoted.sum(1).int()], 1)

    resize_if_possible(tables, step.rows, torch.maximum(wanted, counts), path=path)
    if not bool(last_met(tables)):
        return
    table = tables.table[rows]
    _compact(pool, table, layouts[1], 1, stays_low)
    _demote(pool, table, layouts, demoted, kept[:, 1], errors, path)
    _compact(pool, table, layouts[0], 0, high == HIGH)
    resize(tables, step.rows, wanted, path=path)


def _live(step: StepInputs) -> StepInputs:
    live = step.rows >= 0
    return StepInputs(*(getattr(step, name)[live] for name in StepInputs.__dataclass_fields__))


def _width(counts: Tensor, tier: int, layout: PageLayout) -> int:
    return int((counts[:, tier].max() + layout.tokens - 1) // layout.tokens) * layout.tokens if len(counts) else 0


def _read(
    pool: Tensor,
    tables: PageTables,
    layouts: tuple[PageLayout, ...],
    step: StepInputs,
    counts: Tensor,
    score_window: int,
) -> tuple[Tensor, Tensor]:
    """Significance and position of all tokens of both tiers, high first; position -1 where no token is."""
    scores, positions = [], []
    for tier, layout in enumerate(layouts):
        width = _width(counts, tier, layout)
        pages = bookkeeping.tier_pages(tables.table[step.rows.long()], tier, width // layout.tokens)
        held = torch.arange(width, device=pool.device) < counts[:, tier, None]
        position = torch.where(held, bookkeeping.read_positions(pool, pages, layout), -1)
        score = torch.where(held, bookkeeping.read_scores(pool, pages, layout), 0)
        if layout.bookkeeping != bookkeeping.LEAN:
            seen = bookkeeping.queries_before(position, step.prompt[:, None], step.position[:, None], score_window)
            score = score / seen.clamp(min=1)
        scores.append(score)
        positions.append(position)
    return torch.cat(scores, 1), torch.cat(positions, 1)


def _compact(pool: Tensor, table: Tensor, layout: PageLayout, tier: int, stays: Tensor) -> None:
    """Move the survivors beyond the tier's new end into the holes before it: the k-th into the k-th."""
    token = torch.arange(stays.shape[1], device=stays.device)
    beyond = token >= stays.sum(1)[:, None]
    source_row, source = torch.nonzero(stays & beyond, as_tuple=True)
    target_row, target = torch.nonzero(~stays & ~beyond, as_tuple=True)
    bookkeeping.copy_tokens(
        pool,
        layout,
        _where(table, source_row, source, tier, layout),
        _where(table, target_row, target, tier, layout),
    )


def _demote(
    pool: Tensor,
    table: Tensor,
    layouts: tuple[PageLayout, PageLayout],
    demoted: Tensor,
    first: Tensor,
    errors: Tensor | None,
    path: Path | None,
) -> None:
    """Requantize high tokens into the low places from `first` [n] on."""
    row, source = torch.nonzero(demoted, as_tuple=True)
    target = (demoted.cumsum(1)[row, source] - 1 + first[row]).long()
    page, place = _where(table, row, source, 0, layouts[0])
    tokens = gather(pool, layouts[0], page[:, None], place[:, None], path=path)
    page, place = _where(table, row, target, 1, layouts[1])
    store(pool, layouts[1], page[:, None], place[:, None], tokens, errors=errors, path=path)


def _where(table: Tensor, row: Tensor, token: Tensor, tier: int, layout: PageLayout) -> tuple[Tensor, Tensor]:
    page, place = locate(table[row], token[:, None], tier, layout)
    return page[:, 0], place[:, 0]
