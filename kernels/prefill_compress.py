"""Prefill compression: a prompt's keys and values go into their tiers in one pass, once its last query is known.

Classify, give every kept token a place in its tier, take the pages, then quantize and store each where it belongs.
The paper allocates ceil(N / tokens_high) + 1 pages a head, compresses and returns the rest; here the counts are known,
on the device, before a page is taken, so none is taken that goes back.
Score and position are stored in the order of the tokens that they belong to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leankv.kernels.classify import HIGH, LOW
from leankv.kernels.layout import locate
from leankv.kernels.pages import PageTables, last_met, resize
from leankv.kernels.paths import Path
from leankv.kernels.store import Tokens, store
from leankv.kernels.transforms import AS_THEY_ARE, KeyTransform
from leankv.serving.pages import PageLayout


def store_in_tiers(
    pool: Tensor,
    tables: PageTables,
    layouts: tuple[PageLayout, ...],
    rows: Tensor,
    tokens: Tokens,
    tiers: Tensor,
    places: Tensor,
    counts: Tensor,
    transform: KeyTransform = AS_THEY_ARE,
    errors: Tensor | None = None,
    path: Path | None = None,
) -> None:
    """Replace what `rows` (int32 [kv_heads], one request and layer) hold by `tokens`, sorted into tiers.

    tokens: N tokens of all heads; scores as stored. tiers int8 and places int32 [kv_heads, N], counts int32
    [kv_heads, 2], as `selectors.place_prompt` gives them. Pages that the rows held before are kept as far as they
    serve and freed otherwise, so `tokens` must not be a view of the pool. If pages do not suffice nothing is written
    but the shortage in `tables.state`.
    """
    capacity = torch.zeros_like(counts)
    for tier, layout in enumerate(layouts):
        capacity[:, tier] = layout.tokens
    resize(tables, rows, counts, capacity, path=path)
    table = tables.table[rows.long()]
    for tier, layout in zip((HIGH, LOW), layouts, strict=False):
        member = (tiers == tier) & last_met(tables)
        page, place = locate(table, places.clamp(min=0), tier, layout)
        page = torch.where(member, page, -1).T.contiguous()
        group = _whole_groups(tokens, page, place.T.contiguous(), layout)
        store(pool, layout, *group, transform, errors, path)


def _whole_groups(tokens: Tokens, page: Tensor, place: Tensor, layout: PageLayout) -> tuple[Tensor, Tensor, Tokens]:
    """Drop the tail that fills no group where keys are per channel; such groups start at the first token."""
    if layout.format.key_axis == "token":
        return page, place, tokens
    whole = len(page) // layout.format.group_tokens * layout.format.group_tokens
    kept = Tokens(tokens.keys[:whole], tokens.values[:whole], tokens.scores[:whole], tokens.positions[:whole])
    return page[:whole], place[:whole], kept
