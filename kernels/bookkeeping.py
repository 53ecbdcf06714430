"""Score and position beside every cached token, read a page at a time, and the raw copy of tokens between places.

With 8 bytes a token the stored score is the float32 sum of what the token received, with 5 bytes a float16 running mean
(small increments stall in a float16 sum) and positions take 24 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leankv.kernels import segments
from leankv.kernels.layout import HIGH, locate
from leankv.kernels.pages import PageTables
from leankv.kernels.paths import Path, path_for
from leankv.serving.pages import PageLayout

LEAN = 5


def tier_pages(table: Tensor, tier: int, pages: int) -> Tensor:
    """Page numbers int64 [n, pages] of a tier, in the tier's own order, from table rows [n, max_pages]; empty: 0."""
    columns = table[:, :pages] if tier == 0 else table[:, table.shape[1] - pages :].flip(1)
    return columns.clamp(min=0).long()


def read_scores(pool: Tensor, pages: Tensor, layout: PageLayout) -> Tensor:
    """Stored scores as float32 [n, pages * tokens], of the pages int64 [n, pages]."""
    return segments.scores(pool, layout).squeeze(-1)[pages].flatten(1).float()


def read_positions(pool: Tensor, pages: Tensor, layout: PageLayout) -> Tensor:
    """Positions int32 [n, pages * tokens] of the pages int64 [n, pages]; whatever lies there where no token is."""
    return positions_in(segments.positions(pool, layout)[pages].flatten(1, 2), layout)


def positions_in(stored: Tensor, layout: PageLayout) -> Tensor:
    """Positions int32 [...] as `segments.positions` holds them, [..., 1] or [..., 3]."""
    if layout.bookkeeping != LEAN:
        return stored.squeeze(-1)
    low, middle, high = stored.int().unbind(-1)
    return low | middle << 8 | high << 16


def add_to_scores(pool: Tensor, pages: Tensor, layout: PageLayout, gain: Tensor) -> None:
    """Add `gain` float32 [n, pages * tokens] to the stored scores; a page named twice must have one gain of zeros."""
    stored = segments.scores(pool, layout).squeeze(-1)
    stored.index_add_(0, pages.flatten(), gain.reshape(-1, layout.tokens).to(stored.dtype))


def copy_tokens(pool: Tensor, layout: PageLayout, source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> None:
    """Copy tokens byte for byte from (page, place) to (page, place), int64 [m] each; sources and targets are disjoint.

    Keys per channel share their scale with a group and cannot be moved alone.
    """
    assert layout.format.key_axis == "token", "keys per channel move by groups only"
    for view in _fields(pool, layout):
        view[target] = view[source]


def drop_oldest(
    pool: Tensor, tables: PageTables, layout: PageLayout, rows: Tensor, number: int, path: Path | None = None
) -> None:
    """Move each token of the high tier of `rows` (int32 [n], -1 is padding) `number` places down, over the first.

    The counts stay as they are; `number` is a multiple of 16.
    """
    counts = tables.counts[rows.clamp(min=0), 0]
    if path_for(pool, path) == "triton":
        from leankv.kernels import move_triton

        places = torch.arange(tables.max_pages * layout.tokens, dtype=torch.int32, device=rows.device)[None]
        lists = places[:, number:].expand(len(rows), -1), places[:, :-number].expand(len(rows), -1)
        nothing = torch.zeros_like(rows)
        move_triton.copy_tokens(pool, tables, layout, rows, HIGH, lists, nothing, counts - number)
        return
    moved = torch.arange(number, max(int(counts.max()), number), device=rows.device).expand(len(rows), -1)
    there = (moved < counts[:, None]) & (rows >= 0)[:, None]
    table = tables.table[rows.clamp(min=0)]
    source, target = (locate(table, token, HIGH, layout) for token in (moved, moved - number))
    copy_tokens(pool, layout, (source[0][there], source[1][there]), (target[0][there], target[1][there]))


def _fields(pool: Tensor, layout: PageLayout) -> tuple[Tensor, ...]:
    fields = (*segments.key_codes(pool, layout), *segments.value_codes(pool, layout))
    if layout.format.kind == "int":
        fields += (segments.key_meta(pool, layout), segments.value_meta(pool, layout))
    if layout.bookkeeping:
        fields += (segments.scores(pool, layout), segments.positions(pool, layout))
    return fields


def queries_before(positions: Tensor, prompt: Tensor, upto: Tensor, score_window: int) -> Tensor:
    """Scored queries before position `upto` that saw a token: min(N - i, window) of the prompt's N, then every one."""
    of_prompt = torch.where(positions < prompt, (prompt - positions).clamp(max=score_window), 0)
    return of_prompt + upto - torch.maximum(positions, prompt)
