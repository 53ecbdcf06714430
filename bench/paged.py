"""Paged caches of any size with made-up contents, for the kernels' benchmarks: built from a few page templates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leankv.kernels import pages as pg
from leankv.kernels.attention import LayerCache
from leankv.kernels.layout import new_pool
from leankv.kernels.store import Tokens, store
from leankv.serving.formats import FP8, FP16, K4V2, K8V4
from leankv.serving.pages import PageLayout, layout_of, page_bytes_for, uniform_page_bytes

TEMPLATES = 16
PAGES_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Shape:
    """The attention of one model: Llama-3-8B's by default."""

    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)


@dataclass(frozen=True)
class Mix:
    """What a cache holds of a context: layouts by tier, and the share of the tokens in each."""

    name: str
    layouts: tuple[PageLayout, ...]
    shares: tuple[float, ...]

    def held(self, context: int) -> tuple[int, int]:
        high, low = (*(int(context * share) for share in self.shares), 0)[:2]
        return high, low

    def bytes_read(self, context: int) -> float:
        """Payload, scales and zeros that attention reads of one KV head."""
        head_dim = self.layouts[0].head_dim
        pairs = zip(self.held(context), self.layouts, strict=False)
        return sum(count * layout.format.bytes_per_token(head_dim) for count, layout in pairs)


def mixes(head_dim: int) -> dict[str, Mix]:
    """K8V4 for all tokens; LeanKV's usual mix, a third high, a third low, a third pruned; FP16 and FP8 in pages."""
    size = page_bytes_for(head_dim)
    high, low = layout_of(K8V4, head_dim, size), layout_of(K4V2, head_dim, size)
    plain = {f.name: layout_of(f, head_dim, uniform_page_bytes(f, head_dim), 0) for f in (FP16, FP8)}
    return {
        "K8V4": Mix("K8V4", (high,), (1.0,)),
        "usual mix": Mix("usual mix", (high, low), (1 / 3, 1 / 3)),
        **{name: Mix(name, (layout,), (1.0,)) for name, layout in plain.items()},
    }


@dataclass(frozen=True, eq=False)
class Paged:
    """Caches of `layers` layers whose slots all hold the same number of tokens, on pages in random order."""

    shape: Shape
    mix: Mix
    context: int
    pool: Tensor
    tables: pg.PageTables
    tier_formats: Tensor

    @property
    def slots(self) -> Tensor:
        return torch.arange(self.tables.slots, dtype=torch.int32, device=self.pool.device)

    @property
    def rows(self) -> Tensor:
        return pg.rows_of(self.tables, self.slots).flatten()

    def layer(self, number: int) -> LayerCache:
        by_layer = (self.tables.slots, self.tables.layers, self.shape.kv_heads, -1)
        table = self.tables.table.view(by_layer)[:, number]
        counts = self.tables.counts.view(by_layer)[:, number]
        return LayerCache(self.pool, self.mix.layouts, table, counts, self.tier_formats)


def empty_paged(
    shape: Shape, mix: Mix, batch: int, context: int, layers: int, device: torch.device, pool: bool = True
) -> Paged:
    """Tables with room for `context` positions of every row and two pages more; the pool unwritten, or none at all."""
    held = [-(-count // layout.tokens) for count, layout in zip(mix.held(context), mix.layouts, strict=False)]
    a_row = sum(held) + 2
    pages = batch * layers * shape.kv_heads * a_row
    tables = pg.page_tables(batch, layers, shape.kv_heads, a_row, pages, device)
    # A cache that has run for a while hands pages out in no order.
    tables.free_list.copy_(torch.randperm(pages, device=device).int())
    formats = [*range(len(mix.layouts)), -1][:2]
    tier_formats = torch.tensor(formats, dtype=torch.int32, device=device).repeat(batch, 1)
    bytes_of_pages = new_pool(pages if pool else 0, mix.layouts[0].page_bytes, device)
    return Paged(shape, mix, context, bytes_of_pages, tables, tier_formats)


def filled_paged(shape: Shape, mix: Mix, batch: int, context: int, layers: int, device: torch.device) -> Paged:
    """The same with `context` positions stored: normal keys and values, scores around uniform attention."""
    paged = empty_paged(shape, mix, batch, context, layers, device)
    pg.resize(paged.tables, *occupancy(paged))
    for tier, layout in enumerate(mix.layouts):
        held = -(-mix.held(context)[tier] // layout.tokens)
        columns = slice(0, held) if tier == 0 else slice(paged.tables.max_pages - held, None)
        pages = paged.tables.table[:, columns].flatten().long()
        templates = _templates(layout, context, device)
        for part in pages.split(PAGES_AT_ONCE):
            paged.pool[part] = templates[torch.randint(TEMPLATES, part.shape, device=device)]
    return paged


def occupancy(paged: Paged) -> tuple[Tensor, Tensor, Tensor]:
    """What `pages.resize` needs to take the whole context's pages in every row: rows, tokens, tokens a page."""
    tokens = torch.tensor(paged.mix.held(paged.context), dtype=torch.int32, device=paged.pool.device)
    capacity = [*(layout.tokens for layout in paged.mix.layouts), 0][:2]
    a_page = torch.tensor(capacity, dtype=torch.int32, device=paged.pool.device)
    rows = paged.rows
    return rows, tokens.repeat(len(rows), 1), a_page.repeat(len(rows), 1)


def _templates(layout: PageLayout, context: int, device: torch.device) -> Tensor:
    """Written pages uint8 [TEMPLATES, page_bytes]."""
    pool = torch.zeros(TEMPLATES, layout.page_bytes, dtype=torch.uint8, device=device)
    n = TEMPLATES * layout.tokens
    index = torch.arange(n, device=device)[:, None]
    keys, values = torch.randn(2, n, 1, layout.head_dim, device=device)
    scores = torch.rand(n, 1, device=device) * 2 * 64 / context
    positions = torch.randint(0, context, (n, 1), device=device, dtype=torch.int32)
    errors = torch.zeros(1, dtype=torch.int32, device=device)
    store(
        pool,
        layout,
        index // layout.tokens,
        index % layout.tokens,
        Tokens(keys, values, scores, positions),
        errors=errors,
    )
    return pool
